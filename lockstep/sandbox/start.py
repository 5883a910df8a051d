"""The file that a trainer starts in an interpreter of its own: `python -I start.py <socket> <settings>` becomes the
launcher of a sandbox, `python -I start.py probe` prints what works here.

Nothing of Lockstep is imported but this folder, by its path: `lockstep` is an empty package here.
"""

import os
import signal
import sys
import types

here = types.ModuleType("lockstep")
here.__path__ = [os.path.dirname(os.path.dirname(os.path.abspath(__file__)))]
sys.modules["lockstep"] = here

if __name__ == "__main__":
    # what a trainer ignores or blocks is inherited: without SIGCHLD no child's end can be waited for
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # these two Python itself ignores
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)

    from lockstep.sandbox import launcher, probes

    if sys.argv[1:] == ["probe"]:
        probes.main()
    else:
        launcher.main(sys.argv[1:])
