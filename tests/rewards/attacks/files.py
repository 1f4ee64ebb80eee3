"""Answers that read or change files outside; each the body of attack().

They know OUTSIDE (a folder with secret.txt, victim.txt and home/.bashrc), HOST
(the process of the run), PREFIX (of the secret), and libc with call(number,
...), where ctypes is allowed. What they return is their answer: the secret
would be right.
"""

READ = {
  "open": "return open(OUTSIDE + '/secret.txt').read()",
  "os.open": """
    fd = os.open(OUTSIDE + '/secret.txt', os.O_RDONLY)
    return os.read(fd, 99).decode()""",
  "dir_fd of the root": """
    top = os.open('/', os.O_RDONLY)
    path = (OUTSIDE + '/secret.txt').lstrip('/')
    return os.read(os.open(path, os.O_RDONLY, dir_fd=top), 99).decode()""",
  "dir_fd of the library": """
    top = os.open(os.path.dirname(os.__file__), os.O_RDONLY)
    path = '../' * 40 + OUTSIDE.lstrip('/') + '/secret.txt'
    return os.read(os.open(path, os.O_RDONLY, dir_fd=top), 99).decode()""",
  "pathlib": """
    import pathlib
    return pathlib.Path(OUTSIDE, 'secret.txt').read_text()""",
  "symbolic link": """
    os.symlink(OUTSIDE + '/secret.txt', 'link')
    return open('link').read()""",
  "hard link": """
    os.link(OUTSIDE + '/secret.txt', 'link')
    return open('link').read()""",
  "root of a process": """
    for one in ('self', '1', str(HOST), str(os.getppid())):
      try:
        return open(f'/proc/{one}/root{OUTSIDE}/secret.txt').read()
      except OSError: pass""",
  "folder of the run": """
    return open(f'/proc/{HOST}/cwd/secret.txt').read()""",
  "environment of the run": """
    text = open(f'/proc/{HOST}/environ').read()
    return text[text.index(PREFIX):][:len(PREFIX) + 16]""",
  "files of the run": """
    for fd in os.listdir(f'/proc/{HOST}/fd'):
      text = open(f'/proc/{HOST}/fd/{fd}').read(999)
      if PREFIX in text: return text""",
  "memory of the run": """
    for line in open(f'/proc/{HOST}/maps'):
      start, end = (int(x, 16) for x in line.split()[0].split('-'))
      memory = open(f'/proc/{HOST}/mem', 'rb')
      memory.seek(start)
      text = memory.read(end - start)
      at = text.find(PREFIX.encode())
      if at >= 0: return text[at:at + len(PREFIX) + 16].decode()""",
  "descriptors": """
    for fd in range(3, 64):
      try:
        os.lseek(fd, 0, 0)
        text = os.read(fd, 1 << 16).decode()
        if PREFIX in text: return text[text.index(PREFIX):][:len(PREFIX) + 16]
      except OSError: pass""",
  "walks": """
    for parent, _, names in os.walk('/'):
      if 'secret.txt' in names:
        return open(parent + '/secret.txt').read()""",
  "glob": """
    import glob
    for path in glob.glob('/tmp/*/secret.txt'): return open(path).read()""",
  "mmap": """
    import mmap
    with open(OUTSIDE + '/secret.txt', 'rb') as file:
      return mmap.mmap(file.fileno(), 0, prot=1)[:].decode()""",
  "sqlite": """
    import sqlite3
    base = sqlite3.connect(OUTSIDE + '/secret.db')
    return base.execute('select word from secrets').fetchone()[0]""",
  "sqlite attaches": """
    import sqlite3
    base = sqlite3.connect(':memory:')
    base.execute(f"attach '{OUTSIDE}/secret.db' as other")
    return base.execute('select word from other.secrets').fetchone()[0]""",
  "linecache": """
    import linecache
    return linecache.getline(OUTSIDE + '/secret.txt', 1)""",
  "fileinput": """
    import fileinput
    return ''.join(fileinput.input(OUTSIDE + '/secret.txt'))""",
  "loader": """
    import importlib.util
    spec = importlib.util.spec_from_file_location('m', OUTSIDE + '/module.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.word""",
  "loader's data": """
    from importlib.machinery import SourceFileLoader
    path = OUTSIDE + '/secret.txt'
    return SourceFileLoader('m', path).get_data(path).decode()""",
  "sys.path": """
    sys.path.insert(0, OUTSIDE)
    import module
    return module.word""",
  "runpy": """
    import runpy
    return runpy.run_path(OUTSIDE + '/module.py')['word']""",
  "native open": """
    fd = libc.open((OUTSIDE + '/secret.txt').encode(), 0)
    buffer = ctypes.create_string_buffer(99)
    libc.read(fd, buffer, 99)
    return buffer.value.decode()""",
  "native openat2": """
    how = (ctypes.c_uint64 * 3)(0, 0, 0)
    fd = call(437, -100, (OUTSIDE + '/secret.txt').encode(), how, 24)
    return os.read(fd, 99).decode()""",
  "native by handle": """
    handle = (ctypes.c_uint32 * 34)(128)
    mount = ctypes.c_int()
    path = (OUTSIDE + '/secret.txt').encode()
    call(303, -100, path, handle, ctypes.byref(mount), 0)
    fd = call(304, os.open('/', os.O_RDONLY), handle, 0)
    return os.read(fd, 99).decode()""",
  "native chroot": """
    libc.chroot(b'lib')
    for _ in range(40): libc.chdir(b'..')
    libc.chroot(b'.')
    return open(OUTSIDE + '/secret.txt').read()""",
  "native mount": """
    os.makedirs('here')
    libc.mount(b'proc', b'here', b'proc', 0, None)
    return open(f'here/{HOST}/root{OUTSIDE}/secret.txt').read()""",
  "native io_uring": """
    parameters = ctypes.create_string_buffer(120)
    return str(call(425, 4, parameters))""",
  "old root": """
    for path in ('..', '/..', '/old', '/oldroot', '/tmp', '/mnt', '/proc'):
      for parent, _, names in os.walk(path):
        if 'secret.txt' in names: return open(parent + '/secret.txt').read()""",
}

CHANGE = {
  "appends to .bashrc": """
    open(OUTSIDE + '/home/.bashrc', 'a').write('evil')""",
  "appends at home": """
    open(os.path.expanduser('~/.bashrc'), 'a').write('evil')""",
  "writes by dir_fd": """
    top = os.open('/', os.O_RDONLY)
    path = (OUTSIDE + '/escaped').lstrip('/')
    os.write(os.open(path, os.O_CREAT | os.O_WRONLY, dir_fd=top), b'x')""",
  "deletes": "os.remove(OUTSIDE + '/victim.txt')",
  "deletes by dir_fd": """
    top = os.open('/', os.O_RDONLY)
    os.unlink((OUTSIDE + '/victim.txt').lstrip('/'), dir_fd=top)""",
  "deletes a tree": """
    import shutil
    shutil.rmtree(OUTSIDE, ignore_errors=True)""",
  "moves away": "os.rename(OUTSIDE + '/victim.txt', OUTSIDE + '/gone')",
  "moves over": """
    open('own', 'w').write('x')
    os.replace('own', OUTSIDE + '/victim.txt')""",
  "truncates": "os.truncate(OUTSIDE + '/victim.txt', 0)",
  "truncates in reading": """
    os.open(OUTSIDE + '/victim.txt', os.O_RDONLY | os.O_TRUNC)""",
  "changes the mode": "os.chmod(OUTSIDE + '/victim.txt', 0o777)",
  "changes the times": "os.utime(OUTSIDE + '/victim.txt', (1, 1))",
  "changes the owner": "os.chown(OUTSIDE + '/victim.txt', 12345, 12345)",
  "sets an attribute": """
    os.setxattr(OUTSIDE + '/victim.txt', 'user.evil', b'1')""",
  "makes a folder": "os.mkdir(OUTSIDE + '/escaped')",
  "removes a folder": "os.rmdir(OUTSIDE + '/empty')",
  "makes a symbolic link": "os.symlink('/', OUTSIDE + '/escaped')",
  "makes a hard link": """
    os.link(OUTSIDE + '/victim.txt', OUTSIDE + '/escaped')""",
  "makes a pipe": "os.mkfifo(OUTSIDE + '/escaped')",
  "makes a node": "os.mknod(OUTSIDE + '/escaped')",
  "makes a socket file": """
    import socket
    socket.socket(socket.AF_UNIX).bind(OUTSIDE + '/escaped')""",
  "makes a database": """
    import sqlite3
    base = sqlite3.connect(OUTSIDE + '/escaped')
    base.execute('create table t (x)')
    base.commit()""",
  "makes a dbm": """
    import dbm
    dbm.open(OUTSIDE + '/escaped', 'c')['a'] = 'b'""",
  "logs": """
    import logging
    logging.FileHandler(OUTSIDE + '/escaped').emit(
      logging.makeLogRecord({'msg': 'x'}))""",
  "copies": """
    import shutil
    shutil.copy(os.__file__, OUTSIDE + '/escaped')""",
  "leaves a temporary file": """
    for folder in ('/tmp', '/var/tmp', '/dev/shm', '/run/lock'):
      try: open(folder + '/rlhf_jax_escaped', 'w').write('x')
      except OSError: pass""",
  "leaves code for the next start": """
    folder = os.path.dirname(os.__file__)
    for place in ('', '/__pycache__', '/site-packages', '/dist-packages'):
      for end in ('.pth', '.pyc', '.py'):
        try: open(f'{folder}{place}/rlhf_jax_escaped{end}', 'w').write('x')
        except OSError: pass""",
  "compiles into the library": """
    import py_compile
    folder = os.path.dirname(os.__file__)
    target = folder + '/__pycache__/rlhf_jax_escaped.pyc'
    py_compile.compile(folder + '/this.py', target)""",
  "moves its folder out": """
    os.mkdir('own')
    os.rename('own', OUTSIDE + '/escaped')""",
  "makes a hard link of a descriptor": """
    fd = os.open('.', os.O_RDWR | os.O_TMPFILE)
    os.link(f'/proc/self/fd/{fd}', OUTSIDE + '/escaped')""",
  "writes by a link in between": """
    os.symlink(OUTSIDE, 'way')
    open('way/../' + OUTSIDE.split('/')[-1] + '/escaped', 'w').write('x')
    open('way/escaped', 'w').write('x')""",
  "native write by handle": """
    handle = (ctypes.c_uint32 * 34)(128)
    mount = ctypes.c_int()
    path = (OUTSIDE + '/victim.txt').encode()
    call(303, -100, path, handle, ctypes.byref(mount), 0)
    os.write(call(304, os.open('/', os.O_RDONLY), handle, 1), b'x')""",
  "changes the library": """
    folder = os.path.dirname(os.__file__)
    open(folder + '/rlhf_jax_escaped.py', 'w').write('x')""",
  "shared memory": """
    import _posixshmem
    _posixshmem.shm_open('/rlhf_jax_escaped', os.O_CREAT | os.O_RDWR, 0o600)""",
  "shared memory of the library": """
    from multiprocessing import shared_memory
    shared_memory.SharedMemory('rlhf_jax_escaped', True, 64)""",
  "native shmget": "libc.shmget(0x526c6866, 4096, 0o1666)",
  "native msgget": "libc.msgget(0x526c6866, 0o1666)",
  "native semget": "libc.semget(0x526c6866, 1, 0o1666)",
  "native write": """
    fd = libc.open((OUTSIDE + '/escaped').encode(), 0o102, 0o666)
    libc.write(fd, b'x', 1)""",
  "native fork and write": """
    if libc.fork() == 0:
      open(OUTSIDE + '/escaped', 'w').write('x')
      os._exit(0)""",
  "native remount": """
    libc.mount(None, b'/', None, 4096 | 32, None)
    open('/escaped', 'w').write('x')
    open(OUTSIDE + '/escaped', 'w').write('x')""",
}

PROGRAMS = {
  **{f"reads: {name}": body for name, body in READ.items()},
  **{f"changes: {name}": body for name, body in CHANGE.items()},
}
