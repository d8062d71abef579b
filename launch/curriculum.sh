#!/usr/bin/env bash
# All stages of a curriculum in a row, each from the model of the one before.
#
#   launch/curriculum.sh configs/stages/tiny.py runs/stages [--config.key=value ...]
#
# Stage s runs in runs/stages/s. Stopped or killed anywhere, the same command goes on where it was: a stage that
# finished is not run again, and so is stage_0 where it is a model directory. SIGTERM saves the stage and ends with 75,
# on which a scheduler is to start this script again. TRAIN (default "omnivinci train") runs a stage; on several
# processes: TRAIN="launch/local.sh 2", with groups that they divide.
set -euo pipefail
usage="usage: launch/curriculum.sh CONFIG DIRECTORY [--config.key=value ...]"
config=${1:?$usage}
root=${2:?$usage}
shift 2
read -ra train <<<"${TRAIN:-omnivinci train}"

exists() { # on a disk or in a bucket
  if [[ $1 == gs://* ]]; then gcloud storage ls "$1" >/dev/null 2>&1; else [[ -e $1 ]]; fi
}

stages=(stage_0 vision_1 vision_2 vision_3 vision_4 vision_5 audio_1 audio_2 omni)
child=
told_to_end=
trap 'told_to_end=yes; signalled=yes; [[ -z $child ]] || kill -TERM "$child" 2>/dev/null || true' TERM INT

previous=
for stage in "${stages[@]}"; do
  directory=$root/$stage
  if ! exists "$directory/report.md" && ! exists "$directory/params"; then
    [[ -z $told_to_end ]] || exit 75
    echo "launch/curriculum.sh: $stage" >&2
    "${train[@]}" --config "$config:$stage" --workdir "$directory" \
      ${previous:+--config.start_from="$root/$previous"} "$@" &
    child=$!
    signalled=yes
    while [[ -n $signalled ]]; do # a signal ends the wait, not the stage, which still saves
      signalled=
      code=0
      wait "$child" || code=$?
    done
    ((!code)) || exit "$code"
  fi
  previous=$stage
done
