#!/usr/bin/env python3
"""Captures the fixtures of QemuFixtureTests from real QEMUs. Python, because a capture needs UNIX servers and two QMPs at once.

capture.py OUT QEMU72 QEMU100      (each QEMU: path of a qemu-system-x86_64 or of a script that starts one)

The guest has 2056 KiB (7.2 under TCG loses dirty pages in multiples of 256 KiB) and its own 64 KiB of firmware, which adds 1 to the first byte of each of 16 pages for ever. So streams are
small and their pages known. Files: OUT/<qemu>-<machine>-<mode>.<channel>, channel = main, return, preempt, multifd0, recovery...;
u32 big-endian length, then the bytes as one LZ4 block (JSON and zeros shrink tenfold; the test has a decoder).
"""
import atexit, json, os, socket, subprocess, sys, tempfile, threading, time

OUT, Q72, Q100 = sys.argv[1:4]
WORK = tempfile.mkdtemp(prefix='capture')

def firmware():
    image = bytearray(0x10000)
    code = bytes.fromhex('fa b80010'                    # cli; mov ax, 0x1000
                         '8ed8 fe060000 a30800'         # page: mov ds, ax; inc byte [0]; mov [8], ax
                         '050001 3d0020 72ef'           # add ax, 0x100; cmp ax, 0x2000; jb page
                         'b9ffff e2fe ebe5')            # mov cx, 0xffff; loop $ (slows down); jmp from the start
    image[0xf000:0xf000 + len(code)] = code
    image[0xfff0:0xfff3] = bytes.fromhex('e90df0')      # reset vector: jmp 0xf000
    path = WORK + '/firmware'
    open(path, 'wb').write(image)
    return path

def lz4(data):
    """One LZ4 block: token, literals, u16 little-endian distance; greedy."""
    out, seen, at, anchor, size = bytearray(), {}, 0, 0, len(data)
    def number(n):
        while n >= 255: out.append(255); n -= 255
        out.append(n)
    def sequence(match, distance):
        literals = at - anchor
        out.append(min(literals, 15) << 4 | (min(match - 4, 15) if distance else 0))
        if literals >= 15: number(literals - 15)
        out.extend(data[anchor:at])
        if distance:
            out.extend(distance.to_bytes(2, 'little'))
            if match >= 19: number(match - 19)
    while at < size - 12:
        key = data[at:at + 4]
        earlier = seen.get(key, -1)
        seen[key] = at
        if earlier < 0 or at - earlier > 65535: at += 1; continue
        length = 4
        while at + length < size - 5 and data[earlier + length] == data[at + length]: length += 1
        sequence(length, at - earlier)
        for skipped in range(at + 1, min(at + length, at + 64)): seen[data[skipped:skipped + 4]] = skipped
        at += length; anchor = at
    at = size
    sequence(0, 0)
    return len(data).to_bytes(4, 'big') + bytes(out)

class Qemu:
    def __init__(self, binary, machine, *more, ram='2056K'):
        args = [binary, '-machine', machine, '-accel', 'tcg', '-m', ram, '-nodefaults', '-display', 'none',
                '-bios', FIRMWARE, '-qmp', 'stdio', *more]
        self.process = subprocess.Popen(args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        atexit.register(self.process.kill)
        self.process.stdout.readline()
        self('qmp_capabilities')

    def __call__(self, command, **arguments):
        self.process.stdin.write(json.dumps({'execute': command, 'arguments': {k.replace('_', '-'): v for k, v in arguments.items()}}) + '\n')
        while True:
            answer = json.loads(self.process.stdout.readline())
            if 'error' in answer: raise RuntimeError(f'{command}: {answer}')
            if 'return' in answer: return answer['return']

    def capabilities(self, *names):
        self('migrate-set-capabilities', capabilities=[{'capability': n, 'state': True} for n in names])

    def status(self): return self('query-migrate').get('status')

    def wait(self, *states):
        for _ in range(600):
            if self.status() in states: return self.status()
            time.sleep(0.02)
        raise RuntimeError(f'{self.status()} instead of {states}')

    def stop(self):
        try: self('quit')
        except (RuntimeError, ValueError, OSError): pass
        self.process.wait(10)

class Tap:
    """Records what passes on each connection; with no target it only swallows."""
    def __init__(self, name, target=None, channels=('main',), cut_after=None):
        self.path, self.target, self.cut_after, self.sockets = f'{WORK}/{name}', target, cut_after, []
        self.server = socket.socket(socket.AF_UNIX); self.server.bind(self.path); self.server.listen(8)
        self.records = {}; self.threads = []
        threading.Thread(target=self.accept, args=(channels,), daemon=True).start()

    def accept(self, channels):
        for channel in channels:
            near = self.server.accept()[0]; far = None
            if self.target:
                far = socket.socket(socket.AF_UNIX); far.connect(self.target)
            self.sockets.append((near, far))
            self.start(near, far, channel)
            if far: self.start(far, near, 'return' if channel == 'main' else channel + '-return')

    def start(self, source, sink, name):
        record = self.records[name] = bytearray()
        def pump():
            try:
                while data := source.recv(65536):
                    seen = len(record)
                    record.extend(data)
                    at = record.find(self.cut_after, max(0, seen - 16)) if self.cut_after and name == 'main' else -1
                    if at >= 0: del record[at + len(self.cut_after):]
                    if sink: sink.sendall(record[seen:])
                    if at >= 0: time.sleep(0.5); return self.cut()
            except OSError: pass
            try:
                if sink: sink.shutdown(socket.SHUT_WR)
            except OSError: pass
        self.threads.append(threading.Thread(target=pump, daemon=True)); self.threads[-1].start()

    def cut(self):
        for pair in self.sockets:
            for s in pair: s.shutdown(socket.SHUT_RDWR)

    def save(self, prefix):
        for thread in self.threads: thread.join(5)
        for name, data in self.records.items():
            if data:
                open(f'{OUT}/{prefix}.{name}', 'wb').write(lz4(bytes(data)))
                print(f'{prefix}.{name}: {len(data)} bytes')

RUN = bytes.fromhex('0800050000')      # the command that starts the guest, last in the package
COUNT = [0]
def name(): COUNT[0] += 1; return f's{COUNT[0]}'

def precopy(qemu, machine, mode, caps=(), passes=1, params={}, args=(), receiver=None, dest_args=None, dest_caps=(), channels=('main',), bitmap=False):
    """One pre-copy migration into a sink, or into a real destination when `receiver` is given."""
    destination = target = None
    if receiver:
        target = f'{WORK}/{name()}'
        destination = Qemu(receiver, machine, '-incoming', 'defer', *(args if dest_args is None else dest_args))
        destination.capabilities(*dest_caps)
        destination('migrate-incoming', uri='unix:' + target)
    source = Qemu(qemu, machine, *args)
    source.capabilities(*caps)
    if bitmap:
        for b in ('alpha', 'beta'): source('block-dirty-bitmap-add', node='disk', name=b, persistent=False)
    source('migrate-set-parameters', downtime_limit=1 if passes > 1 else 2000, max_bandwidth=100 << 10 if passes > 1 else 1 << 30)
    if params: source('migrate-set-parameters', **params)
    tap = Tap(name(), target, channels)
    time.sleep(0.2)
    source('migrate', uri='unix:' + tap.path)
    if passes > 1:
        deadline = time.time() + 15
        while source('query-migrate').get('ram', {}).get('dirty-sync-count', 0) < passes and time.time() < deadline: time.sleep(0.01)
        source('migrate-set-parameters', downtime_limit=2000)
    source.wait('completed')
    source.stop()
    if destination: destination.stop()
    tap.save(f'{mode[0]}-{machine.split(",")[0]}-{mode[1]}')

def postcopy(qemu, machine, label, mode, receiver, caps=(), recover=False, channels=('main',)):
    target = f'{WORK}/{name()}'
    destination = Qemu(receiver, machine, '-incoming', 'defer')
    destination.capabilities('postcopy-ram', *caps)
    destination('migrate-incoming', uri='unix:' + target)
    source = Qemu(qemu, machine)
    source.capabilities('postcopy-ram', *caps)
    source('migrate-set-parameters', max_bandwidth=100 << 10, downtime_limit=1, max_postcopy_bandwidth=8 << 10)
    tap = Tap(name(), target, channels, RUN if recover else None)
    time.sleep(0.2)
    source('migrate', uri='unix:' + tap.path)
    time.sleep(1.0)
    source('migrate-start-postcopy')
    prefix = f'{label}-{machine}-{mode}'
    if recover:
        source.wait('postcopy-paused'); destination.wait('postcopy-paused')
        again = f'{WORK}/{name()}'
        destination('migrate-recover', uri='unix:' + again)
        second = Tap(name(), again, ('recovery',))
        source('migrate', uri='unix:' + second.path, resume=True)
    time.sleep(1.5)                                     # the guest asks for pages
    source('migrate-set-parameters', max_postcopy_bandwidth=0)
    source.wait('completed'); destination.wait('completed')
    source.stop(); destination.stop()
    tap.save(prefix)
    if recover: second.save(prefix)

FIRMWARE = firmware()
MODES = sys.argv[4:]
def wanted(mode): return not MODES or mode in MODES
disk = ('-blockdev', f'driver=file,node-name=disk,filename={WORK}/disk')
open(WORK + '/disk', 'wb').truncate(1 << 20)
shared = ('-object', f'memory-backend-file,id=mem,size=2056K,share=on,mem-path={WORK}/ram', '-machine', 'memory-backend=mem')
PC72, Q72M, Q100M = 'pc-i440fx-7.2', 'pc-q35-7.2', 'pc-q35-10.0'

for qemu, label, machines in ((Q72, '7.2', (PC72,)), (Q100, '10.0', (PC72, Q100M))):
    for machine in machines:
        if wanted('plain'): precopy(qemu, machine, (label, 'plain'))
        if wanted('return-path'): precopy(qemu, machine, (label, 'return-path'), caps=('return-path',), receiver=qemu)
        if wanted('xbzrle'): precopy(qemu, machine, (label, 'xbzrle'), caps=('xbzrle',), passes=4)
        if wanted('ignore-shared'): precopy(qemu, machine, (label, 'ignore-shared'), caps=('x-ignore-shared',), args=shared)
        if wanted('bitmaps'): precopy(qemu, machine, (label, 'bitmaps'), caps=('dirty-bitmaps',), args=disk, bitmap=True)
        if wanted('multifd'): precopy(qemu, machine, (label, 'multifd'), caps=('multifd',), channels=('main', 'multifd0', 'multifd1'))
        if wanted('postcopy'): postcopy(qemu, machine, label, 'postcopy', qemu)
if wanted('compress'): precopy(Q72, PC72, ('7.2', 'compress'), caps=('compress',), passes=2)
if wanted('uuid'): precopy(Q100, Q100M, ('10.0', 'uuid'), caps=('validate-uuid',), args=('-uuid', '00112233-4455-6677-8899-aabbccddeeff'))
if wanted('recovery'): postcopy(Q72, PC72, '7.2', 'recovery', Q72, recover=True)
if wanted('preempt'):
    postcopy(Q72, PC72, '7.2', 'preempt', Q72, caps=('postcopy-preempt',), channels=('main', 'preempt'))
    postcopy(Q100, Q100M, '10.0', 'preempt', Q100, caps=('postcopy-preempt',), channels=('main', 'preempt'))
