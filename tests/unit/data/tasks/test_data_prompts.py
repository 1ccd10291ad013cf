import pytest

from fedpft.config import ConfigError
from fedpft.data.tasks.prompts import PromptTemplate, alpaca_template, bare_template

ALPACA = PromptTemplate(alpaca_template("instruction", "input"))
PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."


def test_values_stand_where_the_template_names_their_columns():
    template = PromptTemplate("Question: {question}\nAnswer in {language}:\n")
    assert template.columns == ("question", "language")
    filled = template.fill({"question": "Why?", "language": "Dutch", "other": "x"})
    assert filled == "Question: Why?\nAnswer in Dutch:\n"


def test_a_row_without_context_has_the_alpaca_prompt_word_for_word():
    filled = ALPACA.fill({"instruction": "Say hi.", "input": ""})
    assert filled == f"{PREAMBLE}\n\n### Instruction:\nSay hi.\n\n### Response:\n"


def test_a_context_gets_its_paragraph():
    filled = ALPACA.fill({"instruction": "Translate.", "input": "hi\n\nyou"})
    assert filled == f"{PREAMBLE}\n\n### Instruction:\nTranslate.\n\n### Input:\nhi\n\nyou\n\n### Response:\n"


def test_a_paragraph_of_two_columns_stays_if_one_has_a_value():
    template = PromptTemplate("{a}, {b}")
    assert template.fill({"a": "", "b": "x"}) == ", x"
    assert template.fill({"a": " ", "b": "\n"}) == ""


def test_braces_in_values_and_doubled_ones_in_templates_are_text():
    assert PromptTemplate("{{{a}}} {{b}}").fill({"a": "{c} {0}"}) == "{{c} {0}} {b}"


def test_column_names_may_be_any_words():
    assert PromptTemplate("{my column.1}").fill({"my column.1": "x"}) == "x"


@pytest.mark.parametrize("text", ["no field", "", "{a", "a}", "{}", "{a!r}", "{a:>3}", "{{a}}"])
def test_what_is_no_template_is_an_error_in_one_line(text):
    with pytest.raises(ConfigError, match=r"^task\.prompt_template: found .*, allowed: ") as error:
        PromptTemplate(text)
    assert "\n" not in str(error.value)


def test_the_bare_template_has_the_columns_and_no_words():
    assert bare_template(ALPACA.text) == "{instruction}\n\n{input}"
