#!/usr/bin/env bash
# Runs a command on GPU nodes under Slurm: submits itself as a job, which starts one process per GPU on all nodes.
#
# jax.distributed.initialize() recognizes Slurm by its variables, and gives process i of a node the i-th GPU that the
# process sees (jax/_src/clusters/slurm_cluster.py, cluster.py). So there is one task per GPU, each task sees all GPUs of
# its node (no --gpus-per-task, no binding), and nodes are exclusive.
set -euo pipefail

# This part is the job, on its first node. Slurm runs a copy of this file, so the checkout is passed as an argument.
if [ "${1:-}" = job ]; then
  checkout=$2 container=$3
  shift 3
  cd "$checkout"
  how=(--kill-on-bad-exit=1 --gpu-bind=none)
  if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    how+=("--cpus-per-task=$SLURM_CPUS_PER_TASK") # srun does not inherit it from the job
  else
    how+=(--cpu-bind=none) # else some clusters bind each process to one core
  fi
  if [ -n "$container" ]; then # pyxis adds these options to srun
    how+=("--container-image=$container" "--container-mounts=$checkout:$checkout" "--container-workdir=$checkout")
  fi
  srun "${how[@]}" bash "$checkout/launch/pods/worker.sh" run -- "$@" &
  step=$!
  out_of_time=no
  # SIGTERM goes to the tasks, so that training saves and ends. srun itself would kill them at once.
  trap 'out_of_time=yes; scancel --signal=TERM "$SLURM_JOB_ID"' USR1
  while true; do # a signal interrupts wait, but the step continues
    status=0
    wait "$step" || status=$?
    kill -0 "$step" 2>/dev/null || break
  done
  if [ "$out_of_time" = yes ] && [ "$status" -eq 0 ]; then
    echo 'saved before the time limit; the job is queued again'
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

  --nodes, --gpus        number of nodes, and of GPUs per node; each GPU gets one process
  --time                 time limit of the job
  --save_before=300      seconds before the time limit at which training saves; the job is then queued again and continues
  --job_name=meshlm      name of the job; its log is JOB_NAME-JOB_ID.log, where every line begins with its process and host
  --partition, --account, --cpus (per process), --memory (per node)
                         as in sbatch
  --container=IMAGE      runs in this image, by pyxis. The image needs the packages of requirements.txt and jax[cuda12]. It
                         sees only the checkout, so --workdir must be inside. Default: .venv of the checkout
  --dry_run              prints the commands instead of running them

All nodes must see the checkout and --workdir. To stop a run so that it saves: scancel --signal=TERM JOB_ID
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
  "--signal=B:USR1@$save_before" # B: only to the job's shell, so that it knows why the run ended
  --requeue --open-mode=append '--output=%x-%j.log' "--chdir=$checkout"
)
[ -z "$partition" ] || job+=("--partition=$partition")
[ -z "$account" ] || job+=("--account=$account")
[ -z "$cpus" ] || job+=("--cpus-per-task=$cpus")
[ -z "$memory" ] || job+=("--mem=$memory")
run sbatch "${job[@]}" "$checkout/launch/pods/slurm.sh" job "$checkout" "$container" "${command[@]}"
