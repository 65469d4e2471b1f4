# SPDX-License-Identifier: BSD-2-Clause
"""RAM contents as files on /dev/shm, for peers that take their RAM from a file."""

import os

from peers.base import MIB, PeerError

WORDS = (b"the", b"guest", b"memory", b"page", b"of", b"a", b"kernel", b"and", b"table", b"log",
         b"error", b"open", b"file", b"in", b"process", b"warning", b"service", b"started", b"to",
         b"user", b"session", b"closed", b"device", b"timeout", b"on", b"interface", b"with")


def _text_block():
    """One MiB of words that does not repeat within itself."""
    out = bytearray()
    state = 1
    while len(out) < MIB:
        state = (state * 6364136223846793005 + 1442695040888963407) & ((1 << 64) - 1)
        out += WORDS[(state >> 33) % len(WORDS)] + b" "
        if state >> 60 == 0:
            out += b"%d\n" % (state >> 40)
    return bytes(out[:MIB])


def file_fill(path, ram, fill, touched):
    """Make @path a file of @ram bytes, the first @touched of them written with @fill.

    The rest stays a hole.  Random content differs from page to page and from file to file.
    """
    blocks = {"zero": lambda: bytes(MIB), "random": lambda: os.urandom(MIB)}
    text = _text_block() if fill == "text" else None
    if text is None and fill not in blocks:
        raise PeerError(f"no content is known as {fill}")
    with open(path, "wb", buffering=0) as f:
        f.truncate(ram)
        for i in range(0, touched or ram, MIB):
            # Text rotates by a few bytes per block so that no two blocks are equal.
            shift = (i // MIB * 61) % MIB
            block = text[shift:] + text[:shift] if text else blocks[fill]()
            f.write(block[:min(MIB, (touched or ram) - i)])


def content_file(work, ram, fill, touched):
    """The shared, read-only content file for these parameters; made on first use."""
    key = (ram, fill, touched or ram)
    if key not in work.contents:
        path = os.path.join(work.shm, "content-%d-%s-%d" % key)
        work.log(f"filling {path}")
        file_fill(path, ram, fill, touched)
        work.contents[key] = path
    return work.contents[key]


def content_forget(work):
    """Remove all content files (between scenarios, they are large)."""
    for path in work.contents.values():
        if os.path.exists(path):
            os.unlink(path)
    work.contents.clear()
