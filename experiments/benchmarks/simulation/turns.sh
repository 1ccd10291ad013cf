#!/usr/bin/env bash
# Our program in turns with the peers', by their own run_all.sh: one round each, so that ratios hold on a noisy machine.
#   [PYTHON=python] [REPS=1] [WORKLOADS="minilm overhead"] [GROUPS_="raw2,fedpft raw2,rayagg,fabric"] bash turns.sh PEERS
# Flower joins as "raw2,fedpft,flower" with FL=<python of an environment with flwr[simulation]>.
# fedpft-16 and fedpft-auto are our program with so many clients in one forward pass; fedpft-4-bf16 in mixed precision,
# fedpft-4-bf16w with frozen weights in bfloat16, too.
# PEERS, which may be read-only, is linked into a folder of ours; a mode of naive.py that begins with fedpft is ours.
# Everything runs at one niceness: Ray's workers would have 15.
set -eu
peers=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../../..")
PYTHON=${PYTHON:-python}
work=$(mktemp -d)
turns=
trap '[ -z "$turns" ] || kill -- "-$turns" 2> /dev/null || true; rm -rf "$work"' EXIT
trap 'tail -n 5 "$work"/logs/*.err; exit 1' TERM
ln -s "$peers"/* "$work"
cat > "$work/python" <<SHIM
#!/usr/bin/env bash
if [[ "\$1 \$2 \$3" = "naive.py --mode fedpft"* ]]; then
  IFS=- read -r _ TOGETHER NUMBERS <<< "\$3"
  export TOGETHER=\${TOGETHER:-1} NUMBERS=\${NUMBERS:-float32}
  shift 3
  export PYTHONPATH="$root"
  # whoever dies would let the others wait for its turn for ever
  "$PYTHON" -m experiments.benchmarks.simulation.ours "$peers" "\$@" || { kill $$; exit 1; }
  exit
fi
unset PYTHONPATH
exec "$PYTHON" "\$@"
SHIM
chmod +x "$work/python"
export V=$work/python OUT=${OUT:-$work/turns.jsonl}
export PHASES=turns REPS=${REPS:-1} WORKLOADS=${WORKLOADS:-minilm overhead} GROUPS_=${GROUPS_:-raw2,fedpft,rayagg,fabric}
export OMP_NUM_THREADS=1 RAY_worker_niceness=0 PYTHONDONTWRITEBYTECODE=1
set -m  # a process group of its own, to be ended as a whole
bash "$work/run_all.sh" &
turns=$!
wait "$turns" || kill $$
