#!/usr/bin/env bash
# Runs a command on TPU slices or GPU nodes of Google Kubernetes Engine: fills in tpu.yaml or gpu.yaml and passes it to
# kubectl, whose current context selects the cluster.
set -euo pipefail
# shellcheck source=launch/pods/options.sh
. "$(dirname "${BASH_SOURCE[0]}")/../options.sh"
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

usage() {
  cat <<'END'
bash launch/pods/gke/jobset.sh SUBCOMMAND --name=NAME [--namespace=NAMESPACE] [--dry_run] ...

  start --image=IMAGE --claim=CLAIM --accelerator=ACCELERATOR TPU_OR_GPU [--restarts=10] -- COMMAND
                    runs the command on all hosts, in /meshlm of the image (build it with launch/pods/gke/Dockerfile).
                    CLAIM is a PersistentVolumeClaim that all pods can write to. It is mounted at /meshlm/runs, so
                    --workdir must be there
    TPU:            --topology=4x4 [--slices=1] [--chips=4 per host], with e.g. --accelerator=tpu-v5-lite-podslice
    GPU:            --nodes=N --gpus=GPUS_PER_NODE, with e.g. --accelerator=nvidia-h100-80gb
  tail              follows the logs of all pods; every line begins with its process and host
  status            shows the JobSet and its pods
  stop              deletes the JobSet, also one that has ended. Pods get SIGTERM and ten minutes, in which training
                    saves; the same `start` continues the run

  --dry_run         prints the manifest and the commands instead of applying them

The cluster needs JobSet (github.com/kubernetes-sigs/jobset).
END
}

options=(name namespace image claim accelerator topology slices chips nodes gpus restarts)
switches=(dry_run)
# shellcheck disable=SC2034  # `manifest` reads them by name
name='' namespace='' image='' claim='' accelerator='' topology='' slices=1 chips=4 nodes='' gpus='' restarts=10
dry_run=no

start_with 'start tail status stop' "$@"
need "$subcommand" name
kubectl=(kubectl)
[ -z "$namespace" ] || kubectl+=("--namespace=$namespace")

# Prints the arguments as a list that is valid YAML and JSON. Kubernetes would expand $(NAME), so it is escaped.
json() {
  local word words=()
  for word; do
    word=${word//\\/\\\\}
    word=${word//\"/\\\"}
    word=${word//$'\n'/\\n}
    word=${word//$'\t'/\\t}
    word=${word//"\$("/"\$\$("}
    words+=("\"$word\"")
  done
  local IFS=,
  printf '[%s]' "${words[*]}"
}

manifest() {
  local kind text hosts=$nodes field value
  if [ -n "$topology" ]; then
    [ -z "$nodes$gpus" ] || fail 'start needs either --topology (TPU) or --nodes and --gpus (GPU), not both'
    [[ $topology =~ ^[1-9][0-9]*(x[1-9][0-9]*){1,2}$ ]] || fail "--topology must be like 4x4 or 4x4x8, not '$topology'"
    need_count slices chips
    kind=tpu hosts=$((${topology//x/*}))
    [ $((hosts % chips)) -eq 0 ] || fail "--topology=$topology cannot be split into hosts of $chips chips; change --chips"
    hosts=$((hosts / chips))
  else
    [ -n "$nodes$gpus" ] || fail 'start needs --topology (TPU), or --nodes and --gpus (GPU)'
    need start nodes gpus
    need_count nodes gpus
    kind=gpu chips=$gpus
  fi
  text=$(<"$here/$kind.yaml")
  for field in name image claim accelerator topology slices chips hosts restarts; do
    value=${!field}
    text=${text//@$field@/"$value"}
  done
  printf '%s\n' "${text//@command@/"$(json bash launch/pods/worker.sh run -- "${command[@]}")"}"
}

start() {
  local text
  need start image claim accelerator
  need_count restarts
  need_command start
  text=$(manifest)
  if [ "$dry_run" = yes ]; then
    printf "%s <<'END'\n%s\nEND\n" "$(quoted "${kubectl[@]}" apply --filename=-)" "$text"
  else
    "${kubectl[@]}" apply --filename=- <<<"$text"
  fi
}

tail() {
  run "${kubectl[@]}" logs --follow --max-log-requests=1000 --tail=20 "--selector=jobset.sigs.k8s.io/jobset-name=$name"
}

status() {
  run "${kubectl[@]}" get jobset "$name"
  run "${kubectl[@]}" get pods --output=wide "--selector=jobset.sigs.k8s.io/jobset-name=$name"
}

stop() {
  run "${kubectl[@]}" delete jobset "$name"
  # These exist only for GPUs.
  run "${kubectl[@]}" delete --ignore-not-found "rolebinding/$name" "role/$name" "serviceaccount/$name"
}

"$subcommand"
