#!/usr/bin/env bash
# A sweep on a Slurm partition: sbatch cluster/slurm.sh /shared/project/sweep.yaml /shared/runs/gpt [options of run]
# It saves before its time is over, requeues itself, and goes on. Change: nodes, GPUs, time, and how the environment is activated.
#SBATCH --job-name=flops-fit-ray
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append
# --exclusive: when it ends, `ray symmetric-run` ends every Ray process of its nodes.
# --signal=B: only this script hears it; a signal to all tasks would end Ray beneath the experiments that have to save.
set -euo pipefail

if [ "$#" -lt 2 ]; then
  echo "usage: sbatch slurm.sh SPEC OUTPUT [options of run]; both on storage that all nodes share" >&2
  exit 2
fi
spec=$1
output=$2
shift 2

# source /shared/venv/bin/activate

# One token for all processes of this job.
export RAY_AUTH_MODE=token
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) # where this script runs, too
driver=$(mktemp)

stopping=
# shellcheck disable=SC2329 # the trap calls it
stop() {
  stopping=1
  echo "stopping: the driver saves what runs"
  if [ -s "$driver" ]; then
    kill -TERM "$(cat "$driver")" || true
  fi
}
trap stop USR1 TERM

# shellcheck disable=SC2016 # the inner shell expands these: it notes the driver's process, and becomes it
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" --dashboard-host=127.0.0.1 --disable-usage-stats -- \
  bash -c 'echo $$ > "$1"; shift; exec "$@"' note "$driver" \
  python -u -m flops_fit_ray.run "$spec" --output "$output" --address "$head:6379" "$@" &
step=$!

code=0
wait "$step" || code=$?
while [ -n "$stopping" ]; do # a signal ends a wait, and not the step
  stopping=
  code=0
  wait "$step" || code=$?
done
rm -f "$driver"

if [ "$code" -eq 4 ]; then # interrupted, and the same command goes on
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
