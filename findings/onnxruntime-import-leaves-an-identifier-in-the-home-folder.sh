#!/usr/bin/env bash
# onnxruntime 1.32.0 (numpy 2.4.0), Python 3.11, Linux.
#
# Expected: `import onnxruntime` writes nothing: its usage statistics are a matter of Windows, as they were for years.
# Where there are any, `onnxruntime.disable_telemetry_events()`, the switch that Python has, keeps them off.
# Seen: the import alone makes an identifier of this account and a database of events to send below ~/.cache/Microsoft
# (or $XDG_CACHE_HOME), before a model is loaded. The switch can be called no sooner than after the import: both are
# there by then, and stay. Where CI is set there are none, so that no test of a pipeline sees them.
#
# ORT_DISABLE_TELEMETRY=1 in the environment before the import prevents both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv venv
venv/bin/python -m pip install --quiet --disable-pip-version-check onnxruntime==1.32.0 numpy==2.4.0

# What a process of this code and these variables leaves in an empty home folder. The proxy is none: nothing is sent.
left() {
    local code=$1
    shift
    rm -rf home && mkdir home
    env -u CI -u ORT_DISABLE_TELEMETRY -u XDG_CACHE_HOME HOME="$PWD/home" https_proxy=http://127.0.0.1:9 "$@" \
        venv/bin/python -c "$code" > /dev/null
    (cd home && find . -type f -printf '%f ' | tr ' ' '\n' | sort | xargs)
}

plain=$(left "import onnxruntime")
switch=$(left "import onnxruntime; onnxruntime.disable_telemetry_events()")
variable=$(left "import onnxruntime" ORT_DISABLE_TELEMETRY=1)
pipeline=$(left "import onnxruntime" CI=true)
echo "import onnxruntime: ${plain:-nothing}"
echo "and disable_telemetry_events(): ${switch:-nothing}"
echo "with ORT_DISABLE_TELEMETRY=1: ${variable:-nothing}"
echo "with CI=true: ${pipeline:-nothing}"
[[ $plain == *deviceid*onnxruntime.db* && $switch == *deviceid*onnxruntime.db* && -z $variable$pipeline ]]

# Output seen:
#   import onnxruntime: deviceid onnxruntime.db
#   and disable_telemetry_events(): deviceid onnxruntime.db
#   with ORT_DISABLE_TELEMETRY=1: nothing
#   with CI=true: nothing
