"""The program inside the sandbox: it sets the limits, gives up its rights and runs the code (sandbox.py).

Nothing imports it, and it is the only file of ours that the sandbox can see. It gets three descriptors: the job, a key,
and a pipe for answers. It answers "started " when the limits hold. After the last line of the last part it reads the
key, and answers with it. So an exit before that (`sys.exit(0)`, `os._exit(0)`), or text on stdout that looks like a
pass, is not taken for an end.
"""

import fcntl
import json
import linecache
import os
import random
import resource
import sys
import types


def _limit(job) -> None:
    """Sets the limits, and becomes a user without rights. No later line can undo either."""
    for name, soft_and_hard in job["limits"].items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), tuple(soft_and_hard))
    if job["uid"] is not None:  # root: RLIMIT_NPROC does nothing for it, and files of root would be its own
        os.setgroups([])
        os.setresgid(job["uid"], job["uid"], job["uid"])
        os.setresuid(job["uid"], job["uid"], job["uid"])


def main() -> None:
    job_file, key, answer = map(int, sys.argv[1:])
    with open(job_file, encoding="utf-8") as file:
        job = json.load(file)
    # Code that writes to the first few descriptors must not hit these two by accident.
    key, answer = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, random.randrange(100, 900)) for fd in (key, answer))
    low, high = sorted((key, answer))
    for first, end in ((3, low), (low + 1, high), (high + 1, 1 << 16)):
        os.closerange(first, end)
    _limit(job)
    sys.path += job["packages"]
    os.write(answer, b"started ")
    # A module of its own, so that dataclasses, pickle and typing find the code's names where they look for them.
    module = sys.modules[job["name"]] = types.ModuleType(job["name"])
    sys.argv = ["main.py"]
    for number, part in enumerate(job["parts"], start=1):
        name = f"<part {number}>"
        linecache.cache[name] = (len(part), None, part.splitlines(keepends=True), name)  # for tracebacks
        try:
            exec(compile(part, name, "exec", dont_inherit=True), module.__dict__)
        except Exception as error:
            import traceback

            inner = error.__traceback__ and error.__traceback__.tb_next  # without the line above
            traceback.print_exception(error.with_traceback(inner))
            sys.exit(1)
    os.write(answer, os.read(key, 64))


if __name__ == "__main__":
    main()
