#!/usr/bin/env bash
# Our program in turns with the peers', by their own run_all.sh: one round each, so that ratios hold on a noisy machine.
#   [PYTHON=python] [REPS=1] [WORKLOADS="minilm overhead"] [GROUPS_="raw2,fedpft raw2,rayagg,fabric"] bash turns.sh PEERS
# Flower joins as "raw2,fedpft,flower" with FL=<python of an environment with flwr[simulation]>.
# fedpft-16 and fedpft-auto are our program with so many clients in one forward pass.
# PEERS, which may be read-only, is linked into a folder of ours; a mode of naive.py that begins with fedpft is ours.
# Everything runs at one niceness: Ray's workers would have 15.
set -eu
peers=$(realpath "$1")
root=$(realpath "$(dirname "$0")/../../..")
PYTHON=${PYTHON:-python}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
ln -s "$peers"/* "$work"
cat > "$work/python" <<SHIM
#!/usr/bin/env bash
if [[ "\$1 \$2 \$3" = "naive.py --mode fedpft"* ]]; then
  together=\${3#fedpft}; export TOGETHER=\${together#-}; TOGETHER=\${TOGETHER:-1}
  shift 3
  export PYTHONPATH="$root"
  exec "$PYTHON" -m experiments.benchmarks.simulation.ours "$peers" "\$@"
fi
unset PYTHONPATH
exec "$PYTHON" "\$@"
SHIM
chmod +x "$work/python"
export V=$work/python OUT=${OUT:-$work/turns.jsonl}
export PHASES=turns REPS=${REPS:-1} WORKLOADS=${WORKLOADS:-minilm overhead} GROUPS_=${GROUPS_:-raw2,fedpft,rayagg,fabric}
export OMP_NUM_THREADS=1 RAY_worker_niceness=0 PYTHONDONTWRITEBYTECODE=1
bash "$work/run_all.sh" || { tail -n 5 "$work"/logs/*.err; exit 1; }
