# Sourced by the scripts: where installed things live, and how they get there.
# shellcheck shell=bash

# Everything installed for development lives here, keyed by version; deleting it costs only time.
CACHE=${MOLTINIT_DEV_CACHE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)/.cache}
mkdir -p "$CACHE"

# install_once KEY COMMAND… runs COMMAND in an empty directory, once, and keeps the directory as $CACHE/KEY.
# A run that dies half-way leaves nothing behind that looks installed, and runs beside each other wait for the first.
install_once() {
    local key=$1 part failed
    shift
    exec {lock}>"$CACHE/.$key.lock"
    flock "$lock"
    if [ ! -d "$CACHE/$key" ]; then
        part=$(mktemp -d "$CACHE/.$key.XXXXXX")
        # Not as a condition: inside one, `set -e` is without effect, and a step that fails would be passed over.
        set +e
        (set -e && cd "$part" && "$@") >"$CACHE/.$key.log" 2>&1
        failed=$?
        set -e
        if [ "$failed" != 0 ]; then
            tail -n 30 "$CACHE/.$key.log" >&2
            echo "installing $key failed; the whole log is $CACHE/.$key.log" >&2
            rm -rf "$part"
            return 1
        fi
        mv "$part" "$CACHE/$key"
    fi
    exec {lock}>&-
}

# As root directly, as anybody else through sudo.
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# debian PACKAGE… installs the Debian packages that are missing.
debian() {
    local missing=() package
    for package; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return
    exec {apt}>"$CACHE/.apt.lock"
    flock "$apt"
    as_root env DEBIAN_FRONTEND=noninteractive bash -c '
        apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1 ||
            { apt-get update -qq && apt-get install -y -qq --no-install-recommends "$@" >/dev/null; }' -- "${missing[@]}" >&2
    exec {apt}>&-
}
