"""Answers that reach for processes, the network, the kernel; see files.py.

They know PORT and SOCKET too, on which the run listens, NAME of its socket
without a file, and SECRET_AT, where the secret stands in the memory of the run.
"""

SIGNALS = {
  "kills the run": "os.kill(HOST, 9)",
  "kills its parent": "os.kill(os.getppid(), 9)",
  "kills all": "os.kill(-1, 9)",
  "kills its group": "os.killpg(0, 9)",
  "kills by number": """
    for pid in range(1, 400):
      if pid != os.getpid():
        try: os.kill(pid, 9)
        except OSError: pass""",
  "signals by pidfd": """
    import signal
    signal.pidfd_send_signal(os.pidfd_open(HOST), 9)""",
  "native kill": "libc.kill(HOST, 9)",
  "native kill of all": "libc.kill(-1, 9)",
  "native pidfd": "call(424, call(434, HOST, 0), 9, None, 0)",
  "native tgkill": "call(234, HOST, HOST, 9)",
  "native tkill": "call(200, HOST, 9)",
  "native sigqueue": """
    info = (ctypes.c_int * 32)(9, 0, -1)
    call(129, HOST, 9, info)""",
  "native owner of a pipe": """
    read, write = os.pipe()
    call(72, read, 10, 9)
    call(72, read, 8, HOST)
    call(72, read, 4, 0o20000 | 0o4000)
    os.write(write, b'x')""",
  "limits the run": """
    import resource
    resource.prlimit(HOST, resource.RLIMIT_CPU, (0, 0))""",
  "native limits": """
    call(302, HOST, 0, (ctypes.c_uint64 * 2)(0, 0), None)""",
  "slows the run": "os.setpriority(os.PRIO_PROCESS, HOST, 19)",
  "pins the run": "os.sched_setaffinity(HOST, {0})",
  "schedules the run": """
    os.sched_setscheduler(HOST, os.SCHED_IDLE, os.sched_param(0))""",
  "native ptrace": """
    libc.ptrace(16, HOST, None, None)
    libc.ptrace(8, HOST, None, None)""",
  "native memory of the run": """
    buffer = ctypes.create_string_buffer(64)
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 64)
    call(310, HOST, local, 1, (ctypes.c_uint64 * 2)(SECRET_AT, 64), 1, 0)
    return buffer.raw.split(bytes(1))[0].decode()""",
  "native writes memory of the run": """
    word = (ctypes.c_char * 8)(*b'deceived')
    local = (ctypes.c_uint64 * 2)(ctypes.addressof(word), 8)
    call(311, HOST, local, 1, (ctypes.c_uint64 * 2)(SECRET_AT, 8), 1, 0)""",
  "native frees memory of the run": """
    fd = call(434, HOST, 0)
    call(440, fd, (ctypes.c_uint64 * 2)(SECRET_AT, 4096), 1, 21, 0)""",
  "native compares with the run": "return str(call(312, HOST, HOST, 0, 0, 0))",
  "native attach": """
    libc.ptrace(0x4206, HOST, None, None)
    libc.ptrace(0x4207, HOST, None, None)""",
  "native is traced": "return str(libc.ptrace(0, 0, None, None))",
  "native attributes of the run": """
    given = (ctypes.c_uint32 * 12)(48, 5)
    call(314, HOST, given, 0)""",
  "native input and output class": "call(251, 1, HOST, 3 << 13)",
  "native pages of the run": "call(256, HOST, 64, bytes(8), bytes(8))",
  "stops itself": "os.kill(os.getpid(), 19)",
  "native stops itself": """
    libc.kill(libc.getpid(), 19)
    while True: pass""",
  "a timer for all": """
    import signal
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    os.killpg(os.getpgid(HOST), 15)""",
  "native pidfd_getfd": """
    fd = call(438, call(434, HOST, 0), 3, 0)
    return os.read(fd, 99).decode()""",
}

PROCESSES = {
  "fork": """
    if os.fork() == 0:
      open(OUTSIDE + '/escaped', 'w').write('x')""",
  "fork bomb": """
    while True:
      try: os.fork()
      except OSError: return 'refused'""",
  "threads": """
    import threading, time
    for _ in range(2000):
      threading.Thread(target=time.sleep, args=(60,)).start()""",
  "subprocess": """
    import subprocess
    words = ['cat', OUTSIDE + '/secret.txt']
    return subprocess.check_output(words).decode()""",
  "system": "os.system(f'touch {OUTSIDE}/escaped')",
  "popen": "return os.popen(f'cat {OUTSIDE}/secret.txt').read()",
  "exec": "os.execv('/bin/sh', ['sh', '-c', f'touch {OUTSIDE}/escaped'])",
  "spawn": """
    os.posix_spawn('/bin/sh', ['sh', '-c', f'touch {OUTSIDE}/escaped'], {})""",
  "terminal": """
    import pty
    pty.spawn(['/bin/sh', '-c', f'touch {OUTSIDE}/escaped'])""",
  "pool": """
    from concurrent.futures import ProcessPoolExecutor
    return ProcessPoolExecutor(2).submit(abs, -1).result(1)""",
  "native fork": """
    if libc.fork() == 0:
      os.execv('/bin/sh', ['sh', '-c', f'touch {OUTSIDE}/escaped'])""",
  "native clone": """
    if call(56, 17, 0, 0, 0, 0) == 0:
      libc.open((OUTSIDE + '/escaped').encode(), 0o102, 0o666)
      os._exit(0)""",
  "native clone3": """
    arguments = (ctypes.c_uint64 * 11)(0)
    arguments[4] = 17
    if call(435, arguments, 88) == 0: os._exit(0)""",
  "native exec": """
    words = (ctypes.c_char_p * 4)(
      b'sh', b'-c', f'touch {OUTSIDE}/escaped'.encode(), None)
    libc.execv(b'/bin/sh', words)""",
  "threads of Python's own": """
    import _thread, time
    while True:
      try: _thread.start_new_thread(time.sleep, (60,))
      except RuntimeError: return 'refused'""",
  "processes of the library": """
    import multiprocessing
    for kind in ('fork', 'spawn', 'forkserver'):
      try:
        context = multiprocessing.get_context(kind)
        context.Process(target=open, args=(OUTSIDE + '/escaped', 'w')).start()
      except OSError: pass""",
  "subprocess bomb": """
    import subprocess
    while True:
      try: subprocess.Popen([sys.executable, '-c', 'while True: pass'])
      except OSError: return 'refused'""",
  "daemon": """
    if os.fork() == 0:
      os.setsid()
      if os.fork() == 0:
        while True: pass
      os._exit(0)""",
  "native daemon": """
    if libc.fork() == 0:
      libc.setsid()
      if libc.fork() == 0:
        while True: pass
      libc._exit(0)""",
  "native vfork": """
    if call(58) == 0: libc._exit(0)""",
  "native clone into a group": """
    arguments = (ctypes.c_uint64 * 11)(0x200000000)
    arguments[4] = 17
    if call(435, arguments, 88) == 0:
      while True: pass""",
  "native exec of a memory file by number": """
    fd = call(319, b'x', 0)
    os.write(fd, open(os.path.realpath('/proc/self/exe'), 'rb').read())
    call(322, fd, b'', None, None, 0x1000)""",
  "native exec of a memory file": """
    fd = call(319, b'x', 0)
    os.write(fd, b'#!/bin/sh\\ntouch ' + OUTSIDE.encode() + b'/escaped')
    libc.fexecve(fd, None, None)""",
}

KERNEL = {
  "native namespaces": "return str(libc.unshare(0x10020000))",
  "native setns": "return str(libc.setns(0, 0))",
  "native setuid": """
    libc.setuid(0)
    libc.setresuid(0, 0, 0)
    return open(OUTSIDE + '/secret.txt').read()""",
  "native capabilities": """
    call(126, (ctypes.c_uint32 * 2)(0x20080522, 0),
         (ctypes.c_uint32 * 6)(*[0xffffffff] * 6))
    return open(OUTSIDE + '/secret.txt').read()""",
  "native dumpable": "libc.prctl(4, 1, 0, 0, 0)",
  "native filter": "libc.prctl(22, 0, None, 0, 0)",
  "native bpf": "call(321, 0, ctypes.create_string_buffer(64), 64)",
  "native perf": """
    call(298, ctypes.create_string_buffer(128), HOST, -1, -1, 0)""",
  "native userfaultfd": "call(323, 0)",
  "native keys": "call(248, b'user', b'rlhf_jax', b'x', 1, -5)",
  "native key of the user": "return str(call(250, 0, -4, 1))",
  "native key of another": "call(249, b'user', b'rlhf_jax', b'', -3)",
  "native io_uring reads": """
    parameters = ctypes.create_string_buffer(120)
    ring = call(425, 8, parameters)
    call(427, ring, 2, (ctypes.c_int * 1)(0), 1)
    call(426, ring, 1, 1, 1, None, 0)
    return str(ring)""",
  "native performance": """
    given = (ctypes.c_uint32 * 32)(1, 128)
    return str(call(298, given, 0, -1, -1, 0))""",
  "native listener of calls": """
    program = (ctypes.c_uint64 * 1)(0x7fc0000000000006)
    given = (ctypes.c_uint64 * 2)(1, ctypes.addressof(program))
    return str(call(317, 1, 8, given))""",
  "native namespace of the run": """
    fd = call(434, HOST, 0)
    for kind in (0x20000, 0x10000000, 0x20000000, 0x40000000):
      libc.setns(fd, kind)
    return open(OUTSIDE + '/secret.txt').read()""",
  "native new mount": """
    made = call(430, b'tmpfs', 0)
    call(431, made, 6, None, None, 0)
    mount = call(432, made, 0, 0)
    call(429, mount, b'', -100, OUTSIDE.encode(), 4)""",
  "native open tree": """
    tree = call(428, -100, b'/', 1 | 0x8000)
    path = (OUTSIDE + '/secret.txt').lstrip('/')
    return os.read(os.open(path, os.O_RDONLY, dir_fd=tree), 99).decode()""",
  "native attributes of a mount": """
    call(442, -100, b'/', 0x8000, (ctypes.c_uint64 * 4)(0, 1, 0, 0), 32)
    open(OUTSIDE + '/escaped', 'w').write('x')""",
  "native watch of all files": "return str(call(300, 4, 0))",
  "native module": "call(175, b'x', 1, b'')",
  "native log": "return str(call(103, 3, bytes(4096), 4096))",
  "native ports": "return str(call(172, 3))",
  "native accounting": "call(163, (OUTSIDE + '/escaped').encode())",
  "native swap": "call(167, (OUTSIDE + '/victim.txt').encode(), 0)",
  "native personality": "return str(call(135, 0x0040000))",
  "native queue": "return str(call(240, b'rlhf_jax', 0o102, 0o600, None))",
  "native clock": "libc.settimeofday((ctypes.c_long * 2)(0, 0), None)",
  "native host name": "libc.sethostname(b'evil', 4)",
  "native reboot": "libc.reboot(0)",
  "native unmount": "libc.umount2(b'/', 2)",
  "lifts limits": """
    import resource
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):
      resource.setrlimit(kind, (-1, -1))
    os.fork()""",
}

NETWORK = {
  "tcp": """
    import socket
    socket.create_connection(('127.0.0.1', PORT), 1).sendall(b'x')""",
  "udp": """
    import socket
    one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    one.sendto(b'x', ('127.0.0.1', PORT))""",
  "unix": """
    import socket
    socket.socket(socket.AF_UNIX).connect(SOCKET)""",
  "abstract unix": """
    import socket
    socket.socket(socket.AF_UNIX).connect(chr(0) + NAME)""",
  "urllib": """
    import urllib.request
    return urllib.request.urlopen(f'http://127.0.0.1:{PORT}', timeout=1)""",
  "native tcp": """
    fd = libc.socket(2, 1, 0)
    address = b'\\2\\0' + PORT.to_bytes(2, 'big') + b'\\x7f\\0\\0\\1' + bytes(8)
    libc.connect(fd, address, 16)""",
  "native unix": """
    fd = libc.socket(1, 1, 0)
    libc.connect(fd, b'\\1\\0' + SOCKET.encode() + b'\\0', 110)""",
  "native netlink": "return str(libc.socket(16, 3, 0))",
  "native vsock": "return str(libc.socket(40, 1, 0))",
  "native terminal": "call(16, 0, 0x5412, b'x')",
}

PROGRAMS = {
  **{f"signals: {name}": body for name, body in SIGNALS.items()},
  **{f"starts: {name}": body for name, body in PROCESSES.items()},
  **{f"kernel: {name}": body for name, body in KERNEL.items()},
  **{f"network: {name}": body for name, body in NETWORK.items()},
}
