#!/usr/bin/env bash
# Sets up an environment, prepares data, trains and evaluates a language model, samples from it, and writes a report.
# A second call continues an interrupted run; a finished one is only evaluated again.
set -euo pipefail
cd "$(dirname "$0")/.."
. launch/setup.sh requirements.txt

run=runs/quickstart
python -m launch.train --config=configs/quickstart.py --workdir=$run
python -m launch.evaluate --workdir=$run --prompt="def main(" --prompt="class " --prompt="import "

cat <<END

What next:
  python -m launch.generate --workdir=$run --prompt="def main(" --max_new_tokens=100 --temperature=0.8 --top_p=0.95
  python -m launch.train --config=configs/pretrain_decoder.py:tiny --workdir=runs/mine --config.data.sources="(('files:$HOME/texts/*.txt', 1.0),)"
  python -m launch.benchmark --config=configs/benchmark.py:small
(activate the environment first: . .venv/bin/activate)
The report: $run/report.html
END
