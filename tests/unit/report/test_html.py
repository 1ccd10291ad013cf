import json
import re

from plotly.graph_objects import Figure, Scatter

from fedpft.report.html import choice, document, note, paragraph, plot, section, table
from fedpft.report.partition import MAX_CLIENTS, partition_figure

FIGURE = Figure(Scatter(x=[0, 1], y=[2, 3], name="</script><b>")).update_layout(height=300, template="plotly_dark")


def test_text_is_never_markup():
    made = [document("<i>", []), section("<i>"), paragraph("<i>"), note("<i>"), choice("<i>", {"<i>": "", "b": ""})]
    made.append(table(["group"], [["a", "b"]], "<i>", ["<i>"]))
    for part in made:
        shown = part.split("</style>")[-1]
        assert "&lt;i&gt;" in shown
        assert "<i>" not in re.sub(r"<script>.*?</script>", "", shown, flags=re.DOTALL)


def test_a_figure_is_json_that_cannot_end_its_script_and_leaves_the_colours_to_the_page():
    drawn = plot(FIGURE, 'two "lines"')
    assert drawn.count("</script>") == 1
    content = json.loads(re.search(r">(\{.*\})</script>", drawn)[1])
    assert content["data"][0]["name"] == "</script><b>"
    assert "template" not in content["layout"]
    assert 'aria-label="two &quot;lines&quot;"' in drawn
    assert "height: 300px" in drawn


def test_what_is_wider_than_a_phone_scrolls_by_keyboard_too():
    assert 'tabindex="0"' not in plot(FIGURE, "narrow")
    assert 'class="wide" tabindex="0" role="region" aria-label="wide"' in plot(FIGURE, "wide", min_width=900)


def test_a_choice_of_one_needs_no_list():
    assert choice("model", {"FM": "<p>a</p>"}) == "<p>a</p>"
    assert choice("model", {"FM": "<p>a</p>", "sub-FM": "<p>b</p>"}).count("<option>") == 2


def test_a_partition_shows_shares_of_each_client():
    figure = partition_figure({"label_names": ["no", "yes"], "label_histogram": [[3, 1], [0, 0], [0, 4]]})
    (picture,) = figure.data
    assert [list(row) for row in picture.z] == [[0.75, 0.25], [0, 0], [0, 1]]
    assert figure.layout.yaxis.autorange == "reversed", "client 0 at the top"
    many = partition_figure({"label_names": ["a"], "label_histogram": [[1]] * (MAX_CLIENTS + 1)})
    assert len(many.data[0].z) == MAX_CLIENTS
    assert many.layout.height < 1000
