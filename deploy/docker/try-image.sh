#!/usr/bin/env bash
# Builds the image with podman and runs it as Kubernetes would: read-only root, no capability; here without a network as
# well. It must become ready, translate, count that on /metrics and exit 0 after SIGTERM. Needs root.
#
#   PYTHON_IMAGE=IMAGE   what to build on (default: a Debian with Python, made once by mmdebstrap: no registry needed)
#   MODELS=DIR           the bundles to serve (default: the demo in the image)
#   IMAGE=NAME           what to call the image (default: localhost/dragoman:try)
set -euo pipefail
cd "$(dirname "$0")/../.."

image=${IMAGE:-localhost/dragoman:try}
stand_in=localhost/dragoman-python:stand-in
container=dragoman-try-$$
scratch=$(mktemp -d)

say() { printf '== %s (%ds)\n' "$*" "$SECONDS"; }

finish() {
    local code=$?
    if ((code)) && podman container exists "$container"; then
        echo "== failed; the server's log:" >&2
        podman logs "$container" >&2 || true
    fi
    podman rm --force --ignore --time 0 "$container" >/dev/null || true
    rm -rf "$scratch"
    exit "$code"
}
trap finish EXIT

# Names the image to build on.
python_image() {
    local sources=/etc/apt/sources.list.d/debian.sources
    [[ -e $sources ]] || sources=/etc/apt/sources.list
    if [[ -n ${PYTHON_IMAGE:-} ]]; then
        echo "$PYTHON_IMAGE"
        return
    fi
    if ! podman image exists "$stand_in"; then
        mmdebstrap --quiet --variant=minbase --include=python3,python3-pip,python-is-python3 \
            "$(sed -n 's/^VERSION_CODENAME=//p' /etc/os-release)" "$scratch/python.tar" "$sources" >&2
        podman import --quiet "$scratch/python.tar" "$stand_in" >/dev/null
    fi
    echo "$stand_in"
}

# Writes this machine's pip configuration to a file, each option once: the environment's values come first and win.
write_pip_configuration() {
    echo '[global]'
    python3 -m pip config list \
        | sed -nE "s/^(global|install|:env:)\.([a-z-]+)='(.*)'$/\2 = \3/p" \
        | sort --unique --field-separator== --key=1,1 \
        | sed 's/\\n/\n    /g'
}

# Names the certificates and directories of packages that a pip configuration points to and that exist; of a local index,
# DIR/simple, the whole DIR, as the files lie beside it.
local_paths() {
    { grep -oE '( |file://)/[^ /][^ ]*' "$1" || true; } | sed -E 's,^( |file://),,; s,/simple/*$,,' | sort --unique \
        | while read -r path; do [[ ! -e $path ]] || echo "$path"; done
}

build() {
    local base path lend=()
    base=$(python_image)
    write_pip_configuration >"$scratch/pip.conf"
    for path in $(local_paths "$scratch/pip.conf"); do
        lend+=(--volume "$path:$path:ro")
    done
    say "building $image on $base"
    podman build --quiet --isolation chroot --network host "${lend[@]}" \
        --build-arg PYTHON_IMAGE="$base" --secret id=pip.conf,src="$scratch/pip.conf" \
        --file deploy/docker/Dockerfile --tag "$image" . >/dev/null
    say "built: $(podman image inspect --format '{{.Size}}' "$image") bytes, base included"
}

# runc also copes with a host that mixes both versions of cgroups.
engine=(podman)
if command -v runc >/dev/null; then
    engine+=(--runtime runc)
fi

# The limits: podman asks for more than a host without CAP_SYS_RESOURCE may give.
start() {
    local models=()
    if [[ -n ${MODELS:-} ]]; then
        models=(--volume "$(realpath "$MODELS"):/models:ro" --env DRAGOMAN_MODELS=/models)
    fi
    "${engine[@]}" run --detach --name "$container" --network none \
        --read-only --read-only-tmpfs=false --cap-drop ALL --security-opt no-new-privileges \
        --ulimit nofile=4096:4096 --ulimit nproc=4096:4096 \
        "${models[@]}" "$image" >/dev/null
}

build
say "starting it"
start
"${engine[@]}" exec --interactive "$container" /opt/dragoman/bin/python - <deploy/docker/probe.py
say "stopping it"
"${engine[@]}" kill --signal TERM "$container" >/dev/null
code=$(timeout 40 podman wait "$container")
say "exit $code after SIGTERM"
[[ $code == 0 ]]
