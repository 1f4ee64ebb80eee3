"""The system calls that an answer may make; a filter of the Linux kernel.

What is not listed fails with EPERM: processes, threads, signals to others,
sockets, tracing, mounts, clocks, limits of others, everything new. Runs alone,
on the standard library, without libseccomp. seccomp(2), bpf of linux/filter.h.

Left out: architectures other than x86_64 and aarch64.
"""

from __future__ import annotations

import ctypes
import os
import struct

# name:x86_64:aarch64, the common ones first; "-": has none.
READING = """
read:0:63 write:1:64 close:3:57 lseek:8:62 fstat:5:80 newfstatat:262:79
mmap:9:222 munmap:11:215 brk:12:214 mprotect:10:226 mremap:25:216 madvise:28:233
futex:202:98 clock_gettime:228:113 readv:19:65 writev:20:66 pread64:17:67
pwrite64:18:68 statx:332:291 stat:4:- lstat:6:- access:21:- faccessat:269:48
faccessat2:439:439 readlink:89:- readlinkat:267:78 getdents:78:-
getdents64:217:61 getcwd:79:17 chdir:80:49 fchdir:81:50 statfs:137:43
fstatfs:138:44 fadvise64:221:223 dup:32:23 dup2:33:- dup3:292:24 pipe:22:-
pipe2:293:59 poll:7:- ppoll:271:73 select:23:- pselect6:270:72 flock:73:32
fsync:74:82 fdatasync:75:83 ftruncate:77:46 umask:95:166 set_robust_list:273:99
set_tid_address:218:96 rseq:334:293 membarrier:324:283 arch_prctl:158:-
getrandom:318:278 rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139
rt_sigpending:127:136 sigaltstack:131:132 restart_syscall:219:128 alarm:37:-
getitimer:36:102 setitimer:38:103 nanosleep:35:101 clock_nanosleep:230:115
clock_getres:229:114 gettimeofday:96:169 time:201:- times:100:153
getrusage:98:165 getrlimit:97:163 sched_yield:24:124 sched_getaffinity:204:123
getcpu:309:168 sysinfo:99:179 uname:63:160 getpid:39:172 getppid:110:173
gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111:-
getpgid:121:155 getsid:124:156 exit:60:93 exit_group:231:94
"""
WRITING = """
creat:85:- truncate:76:45 fallocate:285:47 mkdir:83:- mkdirat:258:34 rmdir:84:-
unlink:87:- unlinkat:263:35 rename:82:- renameat:264:38 renameat2:316:276
link:86:- linkat:265:37 symlink:88:- symlinkat:266:36 chmod:90:- fchmod:91:52
fchmodat:268:53 utime:132:- utimes:235:- utimensat:280:88 futimesat:261:-
copy_file_range:326:285
"""
OPENING = {"open": ("2:-", 1), "openat": ("257:56", 2)}  # which argument: flags
# Which values of the second argument pass. Not F_SETOWN (signals to others),
# not terminals. F_GETFD, F_SETFD, F_GETFL, F_DUPFD, F_DUPFD_CLOEXEC, locks.
SECOND = {
  "fcntl": ("72:25", (0, 1, 2, 3, 5, 6, 7, 1030)),
  "ioctl": ("16:29", (0x5401, 0x5450, 0x5451, 0x541B)),  # TCGETS, FIO*CLEX
}
LIMITS = "302:261"  # prlimit64: to read one's own
# kernel name: (column, AUDIT_ARCH_*)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
SYSCALL = {"x86_64": 317, "aarch64": 277}  # seccomp itself
ALLOW, DENY = 0x7FFF0000, 0x00050000 | 1  # SECCOMP_RET_ALLOW, _ERRNO | EPERM
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06  # BPF_LD|W|ABS, _JMP...
NUMBER, ARCHITECTURE, ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
SET_MODE_FILTER = 1


def _instruction(code, value, on_true=0, on_false=0):
  return struct.pack("HBBI", code, on_true, on_false, value)


def _low(argument):
  return _instruction(LOAD, ARGUMENTS + 8 * argument)


def _high(argument):
  return _instruction(LOAD, ARGUMENTS + 8 * argument + 4)


def _numbers(table, column):
  for entry in table.split():
    number = entry.split(":")[1 + column]
    if number != "-":
      yield int(number)


def _when(number, block):
  """Returns instructions that run `block`, which returns, for one call."""
  return [
    _instruction(LOAD, NUMBER),
    _instruction(EQUAL, number, 0, len(block)),
    *block,
  ]


def program(machine, may_write):
  """Returns the filter as bytes of struct sock_filter.

  Args:
    machine: a key of MACHINES.
    may_write: allow to open for writing and to change files.
  """
  column, architecture = MACHINES[machine]
  allow, deny = _instruction(RETURN, ALLOW), _instruction(RETURN, DENY)
  writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
  lines = [
    _instruction(LOAD, ARCHITECTURE),
    _instruction(EQUAL, architecture, 1, 0),
    deny,
    _instruction(LOAD, NUMBER),
  ]
  for number in _numbers(READING + (WRITING if may_write else ""), column):
    lines += [_instruction(EQUAL, number, 0, 1), allow]
  for text, argument in OPENING.values():
    for number in _numbers(f":{text}", column):
      block = [_low(argument), _instruction(ANY_BIT, writing, 0, 1), deny]
      lines += _when(number, [*([] if may_write else block), allow])
  for text, values in SECOND.values():
    for number in _numbers(f":{text}", column):
      block = [_low(1)]
      for value in values:
        block += [_instruction(EQUAL, value, 0, 1), allow]
      lines += _when(number, [*block, deny])
  own = []
  for part in (_low(0), _high(0), _low(2), _high(2)):  # pid, new limits
    own += [part, _instruction(EQUAL, 0, 1, 0), deny]
  for number in _numbers(f":{LIMITS}", column):
    lines += _when(number, [*own, allow])
  return b"".join([*lines, deny])


class _Filter(ctypes.Structure):
  _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_char_p)]


def restrict(libc, may_write):
  """Installs the filter for good; prctl(PR_SET_NO_NEW_PRIVS) comes before.

  Raises:
    OSError: this kernel or architecture has none.
  """
  machine = os.uname().machine
  if machine not in MACHINES:
    raise OSError(f"no filter of system calls is written for {machine}")
  code = program(machine, may_write)
  given = _Filter(len(code) // 8, code)
  if libc.syscall(SYSCALL[machine], SET_MODE_FILTER, 0, ctypes.byref(given)):
    raise OSError(ctypes.get_errno(), "seccomp")
