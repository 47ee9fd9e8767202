#!/usr/bin/env bash
# GPU nodes under Slurm: submits itself as a job that runs one command as one process a GPU, on all nodes.
#
# jax.distributed.initialize() knows Slurm by its variables, and gives process i of a node the i-th of the GPUs that it
# sees (jax/_src/clusters/slurm_cluster.py, cluster.py). So there are as many tasks as GPUs, each task sees all GPUs of
# its node (no --gpus-per-task, no binding), and nodes are not shared.
set -euo pipefail

# The job, on its first node. Slurm runs a copy of this file, so it finds the checkout by its first argument.
if [ "${1:-}" = job ]; then
  checkout=$2 container=$3
  shift 3
  cd "$checkout"
  how=(--kill-on-bad-exit=1 --gpu-bind=none)
  if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    how+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # which srun does not take over from the job
  else
    how+=(--cpu-bind=none) # else some clusters bind each process to one core
  fi
  if [ -n "$container" ]; then # by pyxis
    how+=("--container-image=$container" "--container-mounts=$checkout:$checkout" "--container-workdir=$checkout")
  fi
  srun "${how[@]}" bash "$checkout/launch/pods/worker.sh" run -- "$@" &
  step=$!
  out_of_time=no
  # To all tasks, and not to srun, which would kill them at once: training saves and ends.
  trap 'out_of_time=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
  while true; do # a signal ends wait, not the step
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break
  done
  if [ "$out_of_time" = yes ] && [ "$status" -eq 0 ]; then
    echo 'saved before the time limit: back into the queue'
    exec scontrol requeue "$SLURM_JOB_ID"
  fi
  exit "$status"
fi

# shellcheck source=launch/pods/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/options.sh"
checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

usage() {
  cat <<'END'
bash launch/pods/slurm.sh --nodes=N --gpus=GPUS_OF_A_NODE --time=HH:MM:SS [...] -- python -m launch.train --config=... --workdir=...

  --nodes, --gpus        how many nodes, and GPUs of each; one process a GPU
  --time                 the time limit
  --save_before=300      seconds before it at which training is told to save; then the job queues again and continues
  --job_name=meshlm      also of its log, JOB_NAME-JOB_ID.log, where every line says its process and host
  --partition, --account, --cpus (of a process), --memory (of a node): as sbatch has them
  --container=IMAGE      by pyxis: an image with what requirements.txt and jax[cuda12] say, in which only the checkout is
                         seen (--workdir below it); else .venv of the checkout
  --dry_run              prints the commands instead of running them

The checkout and --workdir must be where all nodes see them. scancel --signal=TERM JOB_ID stops a run so that it saves.
END
}

options=(nodes gpus time save_before job_name partition account cpus memory container)
switches=(help dry_run)
nodes='' gpus='' time='' save_before=300 job_name=meshlm partition='' account='' cpus='' memory='' container=''
help=no dry_run=no

[ $# -gt 0 ] || {
  usage >&2
  exit 2
}
parse "$@"
if [ "$help" = yes ]; then
  usage
  exit
fi
need slurm.sh nodes gpus time
need_count nodes gpus save_before
need_command slurm.sh

job=(
  "--job-name=$job_name" "--nodes=$nodes" "--ntasks-per-node=$gpus" "--gpus-per-node=$gpus" --exclusive "--time=$time"
  "--signal=B:USR1@$save_before" # to the job's shell alone, which knows by it why the run ended
  --requeue --open-mode=append '--output=%x-%j.log' "--chdir=$checkout"
)
[ -z "$partition" ] || job+=("--partition=$partition")
[ -z "$account" ] || job+=("--account=$account")
[ -z "$cpus" ] || job+=("--cpus-per-task=$cpus")
[ -z "$memory" ] || job+=("--mem=$memory")
run sbatch "${job[@]}" "$checkout/launch/pods/slurm.sh" job "$checkout" "$container" "${command[@]}"
