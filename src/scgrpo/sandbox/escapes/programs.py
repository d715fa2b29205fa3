"""Programs that try to get out. Each prints ESCAPED if, and only if, it did something that it must not be able to do.

`python`, `parent`, `secret`, `port`, `unix` and `folder` are baits: see `check.Bait`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from scgrpo.sandbox.base import Limits, Outcome

PRELUDE = """\
import ctypes, os, platform, sys
python, parent, secret, port, unix, folder = sys.argv[1:]
parent, port = int(parent), int(port)
libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"

def escaped(*what):
    print("ESCAPED", *what, flush=True)

def syscall(x86, other, *args):
    number = x86 if X86 else other
    return libc.syscall(ctypes.c_long(number), *(ctypes.c_long(a) if isinstance(a, int) else a for a in args))

def each(*attempts):
    for attempt in attempts:
        try:
            attempt()
        except BaseException as error:
            print(type(error).__name__, error)
"""

ENDS = frozenset({Outcome.OK, Outcome.EXIT, Outcome.KILLED})  # by itself or by the kernel, in time
BOUNDED = frozenset({Outcome.EXIT, Outcome.KILLED, Outcome.TIMEOUT, Outcome.OUTPUT})


@dataclass(frozen=True)
class Attack:
    """A program, how it may end, and in which limits it runs."""

    name: str
    group: str
    source: str
    allowed: frozenset[Outcome] = ENDS
    limits: Limits = field(default_factory=lambda: Limits(wall_s=20.0))


def _attack(group: str, name: str, source: str, allowed: frozenset[Outcome] = ENDS, **limits: float) -> Attack:
    return Attack(name, group, PRELUDE + source, allowed, Limits(**{"wall_s": 20.0, **limits}))  # type: ignore[arg-type]


NETWORK = [
    _attack("network", "TCP to loopback", """
import socket
socket.create_connection(("127.0.0.1", port), timeout=2); escaped()
"""),
    _attack("network", "TCP to the internet", """
import socket
socket.create_connection(("1.1.1.1", 53), timeout=2); escaped()
"""),
    _attack("network", "UDP datagram", """
import socket
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"out", ("127.0.0.1", port)); escaped()
"""),
    _attack("network", "unix socket", """
import socket
s = socket.socket(socket.AF_UNIX); s.connect(unix); escaped()
"""),
    _attack("network", "abstract unix socket, socketpair, netlink, raw", """
import socket
def abstract(): s = socket.socket(socket.AF_UNIX); s.bind("\\0scgrpo-escape"); escaped("abstract")
def pair(): socket.socketpair(); escaped("pair")
def netlink(): socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0); escaped("netlink")
def raw(): socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); escaped("raw")
each(abstract, pair, netlink, raw)
"""),
    _attack("network", "listen on a port", """
import socket
s = socket.socket(); s.bind(("0.0.0.0", 0)); s.listen(); escaped()
"""),
]  # fmt: skip

FILES = [
    _attack("files", "read a world-readable file", "escaped(open(secret).read())"),
    _attack("files", "read /etc/passwd and /etc/shadow", """
each(lambda: escaped(open("/etc/passwd").read(9)), lambda: escaped(open("/etc/shadow").read(9)))
"""),
    _attack("files", "list and read home directories", """
def walk(top, known):
    names = set(os.listdir(top)) - known
    if names: escaped(top, names)
way = set(sys.base_prefix.split("/"))  # to Python itself, where bubblewrap has to show it
each(*(lambda top=top: walk(top, way) for top in ("/root", "/home", os.path.expanduser("~"), folder)))
each(lambda: "var" in os.listdir("/") and escaped("/"), lambda: "passwd" in os.listdir("/etc") and escaped("/etc"))
"""),
    _attack("files", "environment of the parent", """
def read(path):
    data = open(path, "rb").read()
    if b"TOKEN" in data or "self" not in path: escaped(path)
each(*(lambda p=p: read(f"/proc/{p}/environ") for p in (parent, os.getppid(), "self", 1)))
"""),
    _attack("files", "memory of the parent", """
each(*(lambda p=p: escaped(open(f"/proc/{p}/mem", "rb").read(1)) for p in (parent, os.getppid())))
each(*(lambda p=p: escaped(open(f"/proc/{p}/maps").read(9)) for p in (parent, os.getppid())))
"""),
    _attack("files", "secrets in its own environment", """
if any("SECRET" in name or "TOKEN" in name or "secret" in value for name, value in os.environ.items()): escaped()
"""),
    _attack("files", "write anywhere", """
def write(path):
    open(path, "w").write("x"); escaped(path)
places = (folder, "/tmp", "/var/tmp", "/dev/shm", "/", "/root", os.getcwd(), os.path.dirname(os.__file__), "/run")
each(*(lambda p=p: write(os.path.join(p, "escape")) for p in places))
"""),
    _attack("files", "append to, truncate, delete, rename, chmod what exists", """
each(lambda: (open(secret, "a").write("x"), escaped("append")), lambda: (os.truncate(secret, 0), escaped("truncate")),
     lambda: (os.remove(secret), escaped("remove")), lambda: (os.rename(secret, secret + "2"), escaped("rename")),
     lambda: (os.chmod(secret, 0), escaped("chmod")), lambda: (os.utime(secret), escaped("utime")))
"""),
    _attack("files", "links", """
each(lambda: (os.symlink("/etc/passwd", folder + "/link"), escaped("symlink")),
     lambda: (os.link(secret, folder + "/hard"), escaped("link")),
     lambda: (os.mkdir(folder + "/made"), escaped("mkdir")), lambda: (os.mkfifo(folder + "/fifo"), escaped("fifo")))
"""),
    _attack("files", "devices", """
for name in ("/dev/mem", "/dev/kmsg", "/dev/vda", "/dev/sda", "/dev/tty", "/dev/ptmx", "/dev/fuse", "/dev/nvidia0"):
    each(lambda: (os.open(name, os.O_RDONLY), escaped(name)), lambda: (os.open(name, os.O_WRONLY), escaped(name)))
"""),
    _attack("files", "installed packages", """
import sysconfig
for path in (sysconfig.get_paths()["purelib"], "/usr/lib/python3/dist-packages"):
    for folder, _, names in os.walk(path):
        each(*(lambda n=n: escaped(open(os.path.join(folder, n), "rb").read(1)) for n in names[:3]))
        break
import site
each(site.main, lambda: (__import__("torch"), escaped("torch")))
"""),
    _attack("files", "handles to files by descriptor tricks", """
def by_path():
    handle = os.open("/", os.O_PATH); escaped(os.open("etc/passwd", os.O_RDONLY, dir_fd=handle))
def reopen():
    for number in range(256):
        try: again = os.open(f"/proc/self/fd/{number}", os.O_RDWR)
        except OSError: continue
        if number > 2: escaped(number)
        if number == 0: each(lambda: (os.write(again, b"x"), escaped("stdin")))
        os.close(again)
each(by_path, reopen)
libc.open_by_handle_at.restype = ctypes.c_int
if libc.open_by_handle_at(-100, ctypes.create_string_buffer(128), 0) >= 0: escaped("handle")
"""),
    _attack("files", "descriptors left open", """
import stat
for number in range(3, 1024):
    try: mode = os.fstat(number).st_mode
    except OSError: continue
    if not stat.S_ISDIR(mode): escaped(number, oct(mode))
    else: each(lambda: (os.listdir(number), os.open("../../../../../etc/passwd", 0, dir_fd=number), escaped(number)))
"""),
    _attack("files", "leave a file for the next run", """
each(lambda: (open("note", "w").write("x"), escaped("cwd")), lambda: (os.memfd_create("note"), escaped("memfd")),
     lambda: libc.shm_open(b"/note", 66, 384) >= 0 and escaped("shm"))
"""),
    _attack("files", "write to its own input files", """
each(lambda: (os.write(0, b"x"), escaped("stdin")), lambda: (os.ftruncate(0, 0), escaped("truncate")))
"""),
]  # fmt: skip

PROCESSES = [
    _attack("processes", "fork", """
each(lambda: (os.fork() and escaped("fork")), lambda: (os.forkpty()[0] and escaped("pty")))
for name in ("fork", "vfork"):
    pid = getattr(libc, name)() if name == "fork" else syscall(58, 220, 0x4111, 0, 0, 0, 0)
    if pid == 0: os._exit(0)
    if pid > 0: escaped(name)
"""),
    _attack("processes", "execute", """
import subprocess
each(lambda: (subprocess.run([python, "-c", ""]), escaped("run")),
     lambda: os.execv(python, [python, "-c", "print('ESCAPED')"]),
     lambda: os.posix_spawn(python, [python, "-c", ""], {}) and escaped("spawn"),
     lambda: os.system("true") == 0 and escaped("system"), lambda: os.popen("echo ESCAPED").read() and escaped())
"""),
    _attack("processes", "signals to the parent", """
import signal
for target in (parent, os.getppid()):
    each(lambda: (os.kill(target, 0), escaped("kill")), lambda: (os.kill(target, signal.SIGSTOP), escaped("stop")),
         lambda: (signal.pidfd_send_signal(os.pidfd_open(target), 0), escaped("pidfd")),
         lambda: syscall(200, 130, target, 0) == 0 and escaped("tkill"),
         lambda: syscall(129, 138, target, 0, ctypes.create_string_buffer(128)) == 0 and escaped("sigqueue"))
"""),
    _attack("processes", "signals to everybody and to its group", """
each(lambda: (os.kill(-1, 0), escaped("all")), lambda: (os.kill(0, 0), escaped("group")),
     lambda: (os.killpg(os.getpgrp(), 9), escaped("killpg")))
"""),
    _attack("processes", "ptrace the parent", """
for target in (parent, os.getppid()):
    if syscall(101, 117, 16, target, 0, 0) == 0: escaped("attach")
    if syscall(101, 117, 0x4206, target, 0, 0) == 0: escaped("seize")
"""),
    _attack("processes", "memory of other processes by system call", """
here = ctypes.create_string_buffer(8)
class Vector(ctypes.Structure): _fields_ = [("base", ctypes.c_void_p), ("len", ctypes.c_size_t)]
there, mine = Vector(ctypes.addressof(here), 8), Vector(ctypes.addressof(here), 8)
for target in (parent, os.getppid()):
    if syscall(310, 270, target, ctypes.byref(mine), 1, ctypes.byref(there), 1, 0) > 0: escaped("read")
    if syscall(311, 271, target, ctypes.byref(mine), 1, ctypes.byref(there), 1, 0) > 0: escaped("write")
    if syscall(438, 438, syscall(434, 434, target, 0), 0, 0) >= 0: escaped("pidfd_getfd")
    if syscall(312, 272, target, target, 0, 0, 0) >= 0: escaped("kcmp")
"""),
    _attack("processes", "limits and priority of the parent", """
import resource
each(lambda: (resource.prlimit(parent, resource.RLIMIT_NOFILE), escaped("prlimit")),
     lambda: (resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1)), escaped("cpu")),
     lambda: (os.setpriority(os.PRIO_PROCESS, parent, 19), escaped("nice")),
     lambda: (os.sched_setaffinity(parent, {0}), escaped("affinity")))
"""),
    _attack("processes", "raise its own limits, outlive its parent", """
import resource
def more(which):
    soft, hard = resource.getrlimit(which)
    resource.setrlimit(which, (hard, hard * 2)); escaped(which)
each(*(lambda w=w: more(w) for w in (resource.RLIMIT_AS, resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE)))
if libc.prctl(1, 0, 0, 0, 0) == 0: escaped("pdeathsig")
each(lambda: (os.setsid(), escaped("setsid")), lambda: (os.setpgid(0, 0), escaped("setpgid")))
"""),
    _attack("processes", "become root again", """
each(lambda: (os.setuid(0), escaped("setuid")), lambda: (os.setresuid(0, 0, 0), escaped("setresuid")),
     lambda: (os.setgroups([0]), escaped("setgroups")))
if libc.prctl(23, 0, 0, 0, 0) >= 0: escaped("capabilities")
if syscall(126, 91, ctypes.create_string_buffer(8), ctypes.create_string_buffer(24)) == 0: escaped("capset")
"""),
]  # fmt: skip

KERNEL = [
    _attack("kernel", "user and other namespaces", """
for flag in (0x10000000, 0x00020000, 0x40000000, 0x20000000, 0x04000000, 0x08000000, 0x02000000, 0x80):
    if libc.unshare(flag) == 0: escaped("unshare", hex(flag))
    pid = syscall(56, 220, flag | 17, 0, 0, 0, 0)
    if pid == 0: os._exit(0)
    if pid > 0: escaped("clone", hex(flag))
if syscall(435, 435, ctypes.create_string_buffer(88), 88) >= 0: escaped("clone3")
"""),
    _attack("kernel", "mount, chroot, pivot", """
if libc.mount(b"none", b"/tmp", b"tmpfs", 0, None) == 0: escaped("mount")
each(lambda: (os.chroot("/tmp"), escaped("chroot")), lambda: (os.chdir("/tmp"), escaped("chdir")))
if syscall(430, 430, b"tmpfs", 0) >= 0: escaped("fsopen")
if syscall(428, 428, -100, b"/", 1) >= 0: escaped("open_tree")
"""),
    _attack("kernel", "memfd and executing it", """
handle = syscall(319, 279, b"x", 0)
if handle >= 0: escaped("memfd")
if syscall(447, 447, 0) >= 0: escaped("memfd_secret")
if syscall(322, 281, handle, b"", 0, 0, 0x1000) >= 0: escaped("execveat")
"""),
    _attack("kernel", "io_uring, aio", """
if syscall(425, 425, 4, ctypes.create_string_buffer(256)) >= 0: escaped("io_uring")
if syscall(206, 0, 4, ctypes.create_string_buffer(8)) == 0: escaped("aio")
"""),
    _attack("kernel", "bpf, perf, userfaultfd, keyrings", """
for name, x86, other in (("bpf", 321, 280), ("perf", 298, 241), ("userfaultfd", 323, 282), ("keyctl", 250, 219),
                         ("add_key", 248, 217), ("kexec", 246, 104), ("module", 313, 273), ("reboot", 169, 142)):
    if syscall(x86, other, 0, ctypes.create_string_buffer(256), 128, -1, 0) >= 0: escaped(name)
"""),
    _attack("kernel", "loosen its own filter or rules", """
if libc.prctl(22, 1, 0, 0, 0) == 0 or libc.prctl(22, 0, 0, 0, 0) == 0: escaped("seccomp mode")
if libc.prctl(38, 0, 0, 0, 0) == 0: escaped("no_new_privs")
if libc.prctl(4, 1, 0, 0, 0) == 0: escaped("dumpable")
if syscall(444, 444, 0, 0, 1) >= 0: escaped("landlock")
each(lambda: escaped(open("/etc/passwd").read(9)))
"""),
    _attack("kernel", "a thread that is not held", """
import threading
def inside():
    each(lambda: escaped(open("/etc/passwd").read(9)), lambda: os.fork() and escaped("fork"),
         lambda: (__import__("socket").socket(), escaped("socket")))
thread = threading.Thread(target=inside); thread.start(); thread.join()
"""),
    _attack("kernel", "system calls of another ABI (int 0x80, x32)", """
import mmap
if not X86: sys.exit(0)
# mov eax, 5 (open in the 32-bit table) / xor ecx, ecx / int 0x80 / ret, with the path in the low 4 GB
low = libc.mmap; low.restype = ctypes.c_void_p
page = low(ctypes.c_void_p(0x10000000), 4096, 7, 0x32, -1, ctypes.c_long(0))
ctypes.memmove(page, b"/etc/passwd\\0", 12)
code = b"\\xbb\\x00\\x00\\x00\\x10\\x31\\xc9\\x31\\xd2\\xb8\\x05\\x00\\x00\\x00\\xcd\\x80\\xc3"
ctypes.memmove(page + 64, code, len(code))
if ctypes.CFUNCTYPE(ctypes.c_int)(page + 64)() >= 0: escaped("int 0x80")
if syscall(0x40000000 + 2, 0, b"/etc/passwd", 0) >= 0: escaped("x32")
"""),
    _attack("kernel", "terminal injection", """
import fcntl, termios
for number in range(3):
    each(lambda: (fcntl.ioctl(number, termios.TIOCSTI, b"x"), escaped("TIOCSTI")))
"""),
    _attack("kernel", "patch the interpreter's own memory", """
ctypes.memset(ctypes.c_void_p(id(None)), 0, 8)
each(lambda: escaped(open("/etc/passwd").read(9)))
"""),
]  # fmt: skip

RESOURCES = [
    _attack("resources", "memory bomb", "x = [bytearray(2**26) for _ in range(100)]; escaped()", BOUNDED),
    _attack("resources", "memory bomb, page by page", """
x = []
while True: x.append(bytes(4096) + os.urandom(1))
""", BOUNDED),
    _attack("resources", "endless loop", "while True: pass", BOUNDED, wall_s=1.0),
    _attack("resources", "endless loop in C that holds the lock", "10 ** 10 ** 10", BOUNDED, wall_s=1.0),
    _attack("resources", "CPU limit ignored", """
import signal
signal.signal(signal.SIGXCPU, signal.SIG_IGN)
while True: pass
""", BOUNDED, wall_s=30.0, cpu_s=1),
    _attack("resources", "sleep", "import time; time.sleep(1000)", BOUNDED, wall_s=1.0),
    _attack("resources", "ignored signals", """
import signal, time
for number in range(1, 65):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True: time.sleep(1)
""", BOUNDED, wall_s=1.0),
    _attack("resources", "output flood", """
while True: print("x" * 100000)
""", BOUNDED),
    _attack("resources", "output flood on both streams, errors ignored", """
while True:
    for number in (1, 2):
        try: os.write(number, b"x" * 100000)
        except OSError: pass
""", BOUNDED, wall_s=2.0),
    _attack("resources", "threads without end", """
import threading, time
threading.stack_size(32768)
while True: threading.Thread(target=time.sleep, args=(1000,)).start()
""", BOUNDED, wall_s=5.0),
    _attack("resources", "fill a disk", """
def fill(folder):
    with open(os.path.join(folder, "fill"), "wb") as file:
        while True: file.write(bytes(2**20)); escaped(folder)
each(*(lambda f=f: fill(f) for f in (folder, "/tmp", "/dev/shm", ".")))
"""),
    _attack("resources", "grow stdout into a huge sparse file", """
each(lambda: (os.ftruncate(1, 2**40), escaped()), lambda: (os.pwrite(1, b"x", 2**30), escaped()),
     lambda: (os.posix_fallocate(1, 0, 2**30), escaped()))
"""),
    _attack("resources", "recursion without end", """
sys.setrecursionlimit(10**9)
def down(x): return [down([x])]
down(0)
""", BOUNDED, wall_s=3.0),
    _attack("resources", "recursion in C", """
x = []
for _ in range(10**6): x = [x]
repr(x) if sys.setrecursionlimit(10**9) is None else 0
hash(eval("lambda: " * 90 + "1"))
exec("-" * 10**6 + "1")
""", BOUNDED, wall_s=3.0),
    _attack("resources", "descriptors without end", """
held = []
while True: held.append(os.dup(0))
""", BOUNDED),
    _attack("resources", "pipes full of data", """
held = []
while True:
    r, w = os.pipe(); os.set_blocking(w, False); held.append((r, w))
    os.write(w, bytes(65536))
""", BOUNDED),
    _attack("resources", "crash of the interpreter", "ctypes.string_at(0)", BOUNDED),
    _attack("resources", "decompression bomb", """
import zlib
data = zlib.compress(bytes(10**8), 9)
for _ in range(3): data = zlib.decompress(data) + zlib.decompress(zlib.compress(bytes(10**9)))
escaped()
""", BOUNDED),
    _attack("resources", "claims to be fine and goes on", """
import threading, time
threading.Thread(target=lambda: [time.sleep(1000)]).start()
print("done"); sys.stdout.flush()
""", BOUNDED, wall_s=1.0),
]  # fmt: skip

PROGRAMS = [*NETWORK, *FILES, *PROCESSES, *KERNEL, *RESOURCES]
