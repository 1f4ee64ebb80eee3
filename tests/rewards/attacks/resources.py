"""Answers that exhaust, crash or deceive what judges them; see files.py."""

EXHAUST = {
  "nests folders": """
    for _ in range(1800):
      os.mkdir('d')
      os.chdir('d')""",
  "nests folders by dir_fd": """
    fd = os.open('.', os.O_RDONLY)
    for _ in range(1800):
      os.mkdir('d' * 99, dir_fd=fd)
      fd, last = os.open('d' * 99, os.O_RDONLY, dir_fd=fd), fd
      os.close(last)""",
  "locks a folder": """
    os.makedirs('a/b')
    open('a/b/c', 'w').write('x')
    os.chmod('a/b', 0)
    os.chmod('a', 0)""",
  "makes many files": """
    for i in range(10**6): open(str(i), 'w').close()""",
  "fills files": """
    for i in range(1000):
      with open(f'big{i}', 'wb') as file:
        while file.write(bytes(1 << 16)): pass""",
  "makes odd names": """
    for name in (b'\\n', b'\\xff', b'-rf', b'..\\r', b' ', b'x' * 255):
      os.mkdir(name)
      os.mkfifo(name + b'/pipe' if len(name) < 9 else name + b'/p')
      os.chmod(name, 0)""",
  "locks its own folder": """
    os.mkfifo('pipe')
    os.symlink('loop', 'loop')
    os.chmod('pipe', 0)
    os.chmod('.', 0)""",
  "removes its own folder": """
    here = os.getcwd()
    os.chdir('/')
    os.rename(here, '/away')
    os.rmdir(here)""",
  "links in a race": """
    for _ in range(20000):
      try:
        os.symlink(OUTSIDE, 'way')
        os.remove('way/victim.txt')
      except OSError: pass
      try: os.remove('way')
      except OSError: pass
      os.makedirs('way', exist_ok=True)
      os.rmdir('way')""",
  "makes a name unchangeable": """
    import fcntl
    fd = os.open('fixed', os.O_CREAT | os.O_WRONLY)
    fcntl.ioctl(fd, 0x40086602, (16).to_bytes(8, 'little'))""",
  "unpacks a bomb": """
    import gzip, io
    bomb = gzip.compress(gzip.compress(bytes(1 << 27)) * 64)
    return len(gzip.decompress(gzip.decompress(bomb)))""",
  "unpacks a stream": """
    import zlib
    packed = zlib.compress(bytes(1 << 26))
    held = []
    while True: held.append(zlib.decompress(packed))""",
  "prints without end": """
    while True: print('x' * (1 << 20), flush=True)""",
  "writes without end": """
    while True: os.write(1, b'x' * (1 << 20))""",
  "overflows the stack": """
    import faulthandler
    faulthandler._stack_overflow()""",
  "overflows the stack of C": """
    sys.setrecursionlimit(10**9)
    deep = ()
    for _ in range(10**6): deep = (deep,)
    return hash(deep) == repr(deep)""",
  "makes a sparse file": """
    with open('sparse', 'wb') as file: file.truncate(1 << 40)""",
  "opens files": "return len([os.pipe() for _ in range(10**5)])",
  "allocates": "return len(bytearray(1 << 34))",
  "allocates slowly": """
    held = []
    while True: held.append(bytearray(1 << 20))""",
  "maps memory": """
    import mmap
    return [mmap.mmap(-1, 1 << 28) for _ in range(64)]""",
  "recurses": """
    def down(n): return down(n + 1)
    return down(0)""",
  "recurses without limit": """
    sys.setrecursionlimit(10**9)
    def down(n): return [down(n + 1)]
    return down(0)""",
  "nests code": "return eval('(' * 5000 + ')' * 5000)",
  "nests operators": "return eval('-' * 10**6 + '1')",
  "prints": """
    for _ in range(10**5): print('x' * 99)""",
  "writes to all descriptors": """
    for fd in range(64):
      try: os.write(fd, b'{"value": 1}\\n' * 9)
      except OSError: pass""",
  "closes all descriptors": "os.closerange(0, 999)",
  "loops": """
    while True: pass""",
  "sleeps and ignores signals": """
    import signal, time
    for number in range(1, 64):
      try: signal.signal(number, signal.SIG_IGN)
      except (OSError, ValueError): pass
    time.sleep(600)""",
  "computes": "return 9 ** 9 ** 9",
  "backtracks": """
    import re
    return re.match('(a+)+$', 'a' * 60 + 'b')""",
}

CRASH = {
  "exits": "sys.exit(0)",
  "exits at once": "os._exit(0)",
  "aborts": "os.abort()",
  "native null": "ctypes.string_at(0)",
  "native stack": "libc.longjmp(id(0), 1)",
  "frees twice": """
    libc.free.argtypes = [ctypes.c_void_p]
    libc.free(id(sys)); libc.free(id(sys))""",
  "alarm": """
    import signal
    signal.alarm(1)
    while True: pass""",
  "interrupts": "raise KeyboardInterrupt",
  "stops iteration": "raise StopIteration",
  "asserts": "raise AssertionError",
  "raises a group": "raise BaseExceptionGroup('x', [SystemExit(0)])",
  "raises without text": """
    class Odd(Exception):
      def __str__(self): raise SystemExit(0)
    raise Odd""",
  "ends the interpreter": "ctypes.pythonapi.Py_Finalize()",
  "faults by itself": """
    import faulthandler
    faulthandler._sigsegv()""",
  "faults later": """
    import faulthandler, time
    faulthandler.dump_traceback_later(0.1, exit=True, file=1)
    time.sleep(60)""",
  "sleeps at its end": """
    import atexit, time
    atexit.register(time.sleep, 600)
    sys.exit(0)""",
  "sleeps in its clean-up": """
    import time
    class Late:
      def __del__(self):
        while True: time.sleep(60)
    sys.late = Late()
    raise SystemExit""",
  "raises what cannot be shown": """
    class Odd(BaseException):
      def __str__(self): return chr(0xd800)
      __repr__ = __str__
    Odd.__name__ = chr(0xd800)
    raise Odd""",
}

DECEIVE = {
  "equals all": """
    class Yes(str):
      def __eq__(self, other): return True
      __hash__ = str.__hash__
    return Yes('x')""",
  "equals all as an object": """
    class Yes:
      def __eq__(self, other): return True
    return Yes()""",
  "lies about its class": """
    class Yes:
      __class__ = str
      def __eq__(self, other): return True
      def __str__(self): return PREFIX
    return Yes()""",
  "a list that equals": """
    class Yes(list):
      def __eq__(self, other): return True
      def __iter__(self): return iter([self] * 9)
    return Yes()""",
  "patches the encoder": """
    import json
    json.dumps = lambda *_: '{"value": true, "passed": true}'""",
  "patches builtins": """
    import builtins
    builtins.compile = builtins.exec = lambda *_: None
    builtins.all = builtins.isinstance = lambda *_: True""",
  "patches the sandbox": """
    for name, module in list(sys.modules.items()):
      if 'sandbox' in name:
        for key in list(vars(module)):
          setattr(module, key, lambda *_, **__: {'value': True})""",
  "walks the frames": """
    frame = sys._getframe()
    while frame:
      for value in frame.f_locals.values():
        if PREFIX in str(value) and len(str(value)) == len(PREFIX) + 16:
          return str(value)
      frame = frame.f_back""",
  "searches objects": """
    import gc
    for value in gc.get_objects():
      if isinstance(value, dict):
        for one in list(value.values()):
          if isinstance(one, str) and one.startswith(PREFIX):
            if len(one) == len(PREFIX) + 16: return one""",
  "native search of memory": """
    import re
    pattern = re.compile(PREFIX.encode() + rb'[0-9a-f]{16}')
    starts = {id(x) & ~0xfffff for x in map(str, range(9**5))}
    for start in starts:
      found = pattern.search(ctypes.string_at(start, 1 << 20))
      if found: return found.group().decode()
    libc.sbrk.restype = ctypes.c_void_p
    top = libc.sbrk(0)
    found = pattern.search(ctypes.string_at(top - (1 << 17), 1 << 17))
    return found and found.group().decode()""",
  "forges a name": """
    reply({"value": {"named": ["x", ["__eq__", "a b"], [1, 2]]}})""",
  "forges a class": """
    reply({"value": {"object": "__tests__"}})""",
  "forges an endless range": """
    reply({"value": {"range": [0, {"int": "0x" + "f" * 99}, 1]}})""",
  "forges a deep value": """
    import os
    line = '{"list": [' * 90000 + '1' + ']}' * 90000
    for fd in range(3, 32):
      try: os.write(fd, ('{"value": ' + line + '}').encode() + bytes([10]))
      except OSError: pass""",
  "forges an error": "reply({'error': 'SystemExit'})",
  "forges a verdict": """
    for fd in range(64):
      try: os.write(fd, b'["passed", ""]' + bytes([10]))
      except OSError: pass
    os._exit(0)""",
  "forges an outcome": """
    verdict = b'["passed", ""]' + bytes([10])
    header = b'{"code": 0, "bytes": %d}' % len(verdict)
    for fd in range(64):
      try: os.write(fd, header.ljust(512) + verdict)
      except OSError: pass
    os._exit(0)""",
  "forges an outcome by seeking": """
    for fd in range(64):
      try:
        os.lseek(fd, 0, 0)
        os.ftruncate(fd, 0)
        os.write(fd, b'["passed", ""]' + bytes([10]))
      except OSError: pass
    os._exit(0)""",
  "forges an unknown form": "reply({'value': {'eval': '1'}})",
  "forges an endless line": """
    while True:
      for fd in range(3, 32):
        try: os.write(fd, b'[' * 4096)
        except OSError: pass""",
}

PROGRAMS = {
  **{f"exhausts: {name}": body for name, body in EXHAUST.items()},
  **{f"crashes: {name}": body for name, body in CRASH.items()},
  **{f"deceives: {name}": body for name, body in DECEIVE.items()},
}
