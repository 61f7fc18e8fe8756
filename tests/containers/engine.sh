#!/usr/bin/env bash
# A Docker engine started by hand, for tests/containers/trial.py on a machine that runs none. As root; Debian's packages
# docker.io and debootstrap, and Compose v2 as a plugin of docker.
#
#   tests/containers/engine.sh up FOLDER      starts dockerd with all that it keeps in FOLDER, and makes the base images
#   . FOLDER/environment                      points docker to it
#   tests/containers/engine.sh down FOLDER    ends it and deletes FOLDER
#
# The base images are Debian's Python 3.11 and Redis 8, from debootstrap, under the names that Dockerfile and compose
# file have: stand-ins where no registry is reached. Another mirror: MIRROR=http://...
set -euo pipefail

command=${1:?up or down} folder=$(realpath -m "${2:?a folder for the engine}")
mirror=${MIRROR:-http://deb.debian.org/debian}

docker() { command docker -H "unix://$folder/docker.sock" "$@"; }

base() { # base NAME SUITE PACKAGES FINISH IMPORT_OPTION... : a root of Debian as the image NAME
    local name=$1 suite=$2 packages=$3 finish=$4 root=$folder/root
    docker image inspect "$name" >/dev/null 2>&1 && return
    debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >"$folder/debootstrap.log" 2>&1
    chroot "$root" sh -c "$finish"
    rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale}
    tar -C "$root" -c . | docker import "${@:5}" - "$name"
    rm -rf "$root"
}

case $command in
up)
    mkdir -p "$folder"
    had_bridge=$(ip link show docker0 >/dev/null 2>&1 && echo yes || echo no)
    iptables-save >"$folder/iptables.before"
    echo "$had_bridge" >"$folder/had_bridge"
    setsid dockerd --data-root "$folder/data" --exec-root "$folder/exec" --pidfile "$folder/dockerd.pid" \
        -H "unix://$folder/docker.sock" >"$folder/dockerd.log" 2>&1 &
    for _ in $(seq 100); do
        docker version >/dev/null 2>&1 && break
        sleep 0.2
    done
    docker version --format 'dockerd {{.Server.Version}}' || { tail "$folder/dockerd.log"; exit 1; }
    base python:3.11-slim-bookworm bookworm python3,python3-venv,ca-certificates \
        'ln -sf python3 /usr/bin/python' --change 'CMD ["python3"]'
    base redis:8-bookworm trixie redis-server,redis-tools \
        'install -d -o redis -g redis /data' --change 'WORKDIR /data' --change 'VOLUME /data'
    echo "export DOCKER_HOST=unix://$folder/docker.sock DOCKER_BUILDKIT=1" >"$folder/environment"
    echo "now: . $folder/environment"
    ;;
down)
    if pid=$(cat "$folder/dockerd.pid" 2>/dev/null); then
        kill "$pid"
        for _ in $(seq 150); do
            kill -0 "$pid" 2>/dev/null || break
            sleep 0.2
        done
        kill -0 "$pid" 2>/dev/null && { echo "dockerd $pid does not end" >&2; exit 1; }
    fi
    { grep -o " $folder/[^ ]*" /proc/self/mountinfo || true; } | sort -ru | while read -r mount; do umount -l "$mount"; done
    # Where another engine runs, the rules are also that one's.
    if [ "$(cat "$folder/had_bridge")" = no ]; then
        iptables-restore <"$folder/iptables.before"
        ip link delete docker0 2>/dev/null || true
    fi
    rm -rf "$folder"
    ;;
*)
    echo "engine.sh up|down FOLDER" >&2
    exit 2
    ;;
esac
