#!/bin/sh
# Installs the decompression libraries that scdd is faster with, where that can be done without asking: as root, with
# apt-get, and only if one is missing. Never fails: what is missing is done without, and one line says so.

headers="libdeflate.h zlib.h zstd.h lz4.h blosc.h"

missing() {
  for header in $headers; do
    printf '#include <stddef.h>\n#include <%s>\n' "$header" |
      ${CXX:-c++} ${CXXFLAGS:-} -x c++ -fsyntax-only - 2>/dev/null || printf ' %s' "${header%.h}"
  done
}

command -v "${CXX:-c++}" >/dev/null 2>&1 || exit 0 # setup.py says how to get a compiler
lacking=$(missing)
[ -n "$lacking" ] || exit 0

packages="libdeflate-dev zlib1g-dev libzstd-dev liblz4-dev libblosc-dev pkg-config"
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing libraries for decompression ..."
  export DEBIAN_FRONTEND=noninteractive
  if timeout 120 apt-get update >/dev/null 2>&1; then
    # One by one: a system may lack one of them.
    for package in $packages; do
      timeout 300 apt-get install -y --no-install-recommends "$package" >/dev/null 2>&1 || :
    done
  fi
  lacking=$(missing)
fi
if [ -n "$lacking" ]; then
  echo "decompression goes without$lacking, more slowly or through h5py and zarr; on Debian: apt-get install $packages"
fi
exit 0
