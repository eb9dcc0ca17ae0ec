#!/bin/bash
# examples/clusters/tpu_pod.sh NAME ZONE: on all machines of a Cloud TPU pod slice; JAX finds them by itself.
# The bucket is mounted on every machine (gcsfuse), so that all see the same run folder.
set -euo pipefail
name=$1 zone=$2

gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "
  set -euo pipefail
  pip install --quiet 'jax[tpu]' 'rnnjax[lm]'
  run=/mnt/bucket/run
  if compgen -G \"\$run/checkpoints/step_*\" > /dev/null; then
    set -- train --resume \$run
  else
    set -- train /mnt/bucket/text --out \$run --force --epochs 1 --layers 2 --hidden 2048 --batch-size 1024
  fi
  exec rnnjax \"\$@\" --distributed
"
