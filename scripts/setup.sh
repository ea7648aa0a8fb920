# Sourced by scripts/demo and scripts/test: makes or reuses .venv with the pinned tools; needs the network only then.
# "extras" says which of those in pyproject.toml are needed; each has its stamp, so that the demo installs little.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extras=${extras:-demo,quick,dev,interop}
wanted=$(cat pyproject.toml scripts/constraints.txt | sha256sum)
# With the times, because the program does not use a kernel that is older than its source (ema_cli/fold/kernel.py).
kernel=$(cat ema_cli/fold/*.[ch] | sha256sum && stat --format %y ema_cli/fold/*.[ch])
missing=''
for extra in ${extras//,/ }; do
    [ "$(cat ".venv/installed-$extra" 2>/dev/null)" = "$wanted" ] || missing=yes
done
if [ "$missing" ]; then
    python=$(command -v python3.11 || command -v python3)
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed; $python is $("$python" --version)" >&2
        exit 1
    }
    echo "Installing ema-avg and what it needs (torch is by far the largest) into .venv: once, a minute or two." >&2
    echo "Only this step needs the network." >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    # As an environment variable the constraints also hold for the tools that build the package.
    # setuptools compiles the kernel again, below.
    PIP_CONSTRAINT=$PWD/scripts/constraints.txt .venv/bin/python -m pip install \
        --progress-bar off --disable-pip-version-check --editable ".[$extras]" setuptools | while read -r line; do
        case $line in
            Collecting\ *) line=${line#Collecting } && printf '%s ' "${line%%[ <>=!~;(\[]*}" ;;
            Downloading*[MG]B\) | Using\ cached*[MG]B\)) printf '\n%s' "$line" ;;
            Installing\ collected*) printf '\nUnpacking all of them, which takes longest\n' ;;
        esac
    done >&2
    for extra in ${extras//,/ }; do echo "$wanted" >".venv/installed-$extra"; done
elif [ "$(cat .venv/installed-kernel 2>/dev/null)" != "$kernel" ]; then
    echo "Compiling the kernel of the fold again, because its source has changed." >&2
    log=$(.venv/bin/python -m pip install --verbose --disable-pip-version-check \
        --no-index --no-deps --no-build-isolation --editable . 2>&1) || { echo "$log" >&2 && exit 1; }
    grep -E '(error|warning): ' <<<"$log" >&2 || true
    .venv/bin/ema-avg version >&2
fi
echo "$kernel" >.venv/installed-kernel
export PATH="$PWD/.venv/bin:$PATH"
unset PYTHONDONTWRITEBYTECODE # compiled modules save a second or two of every start
