#!/bin/sh
# Turns a bare Debian into what the image holds. Dockerfile's last stage runs it, and so does
# tests/image/container.sh, in a chroot: what is in the image is said here and nowhere else.
#
#     root.sh PARTS        PARTS holds bin/{agent,trainer,healthy} and doc/, as build.sh leaves them
#
# Of CUDA there is nothing: the trainer carries its own kernels and opens libcuda.so.1, which the
# driver's container toolkit brings in; cuBLASLt is not used.
set -eu
parts=$1
export DEBIAN_FRONTEND=noninteractive

# A bare Debian has glibc, libgcc_s and bash already.
apt-get update -qq
apt-get install -qq --no-install-recommends ca-certificates >/dev/null

for program in agent trainer healthy; do
    install -m 755 "$parts/bin/$program" "/usr/local/bin/$program"
done
mkdir -p /usr/local/share/doc/anneal
cp -R "$parts/doc/." /usr/local/share/doc/anneal/

# For whoever does not want to be root: `--user anneal`, or any other number.
useradd --uid 1000 --user-group --create-home --shell /bin/bash anneal
# Any user may work here; like /tmp it may be a volume where the rest is read-only.
mkdir -m 1777 /work

# What a program loads at its start must be there.
for program in agent trainer; do
    "$program" --version >/dev/null || "$program" --help >/dev/null
done

# Not needed at run time, and different from build to build. Debian's licences stay.
apt-get clean
rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/cache/debconf/* /var/cache/ldconfig/* \
    /var/log/* /tmp/* /usr/share/man/* /usr/share/info/* /usr/share/locale/*
find /usr/share/doc -mindepth 2 ! -name copyright ! -type d -delete
