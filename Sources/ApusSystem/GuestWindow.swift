internal import CApus
internal import Glibc

/// A shared mapping of a file that is a guest's RAM.
///
/// The bytes belong to a running machine and change at any time: nobody gets a reference into them, they are copied in
/// and out once, and decisions are taken on the copy.
// @unchecked: the mapping itself is immutable, and all access is by copy.
@safe public final class GuestWindow: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer
    let descriptor: Descriptor
    let fileOffset: UInt64
    public let byteCount: UInt64

    /// Maps `byteCount` bytes of the file from `fileOffset` on.
    public init(_ descriptor: Descriptor, fileOffset: UInt64, byteCount: UInt64) throws(SystemError) {
        let address = unsafe mmap(
            nil, Int(byteCount), PROT_READ | PROT_WRITE, MAP_SHARED, descriptor.number, off_t(fileOffset))
        guard let address = unsafe address, unsafe address != MAP_FAILED else { throw SystemError.last("mmap") }
        unsafe base = address
        self.descriptor = descriptor
        self.fileOffset = fileOffset
        self.byteCount = byteCount
    }

    deinit { unsafe munmap(base, Int(byteCount)) }

    /// Copies `source` into guest RAM at `offset` (bytes from the block's start); traps outside the block.
    public func install(_ source: RawSpan, at offset: UInt64) {
        check(offset, source.byteCount)
        unsafe source.withUnsafeBytes { bytes in
            if let from = bytes.baseAddress { unsafe memcpy(base + Int(offset), from, bytes.count) }
        }
    }

    /// Like ``install(_:at:)`` but through the file: pages that do not exist yet are made by the copy, without being
    /// zeroed and mapped first.
    public func installFresh(_ source: RawSpan, at offset: UInt64) throws(SystemError) {
        check(offset, source.byteCount)
        var written = 0
        while written < source.byteCount {
            written += try retrying("pwrite") {
                unsafe source.withUnsafeBytes { bytes in
                    guard let from = bytes.baseAddress else { return 0 }
                    return unsafe pwrite(
                        descriptor.number, from + written, bytes.count - written,
                        off_t(fileOffset + offset) + off_t(written))
                }
            }
        }
    }

    /// Overwrites the lines of the page at `offset` that `mask` names, lowest bit first, with `source`, which holds just
    /// these lines.
    public func patch(_ source: RawSpan, at offset: UInt64, _ mask: UInt32, lineBytes: Int) {
        check(offset, (UInt32.bitWidth - mask.leadingZeroBitCount) * lineBytes)
        unsafe source.withUnsafeBytes { bytes in
            guard let from = bytes.baseAddress else { return }
            var done = 0
            mask.eachRun { first, count in
                precondition((done + count) * lineBytes <= bytes.count)
                unsafe memcpy(base + Int(offset) + first * lineBytes, from + done * lineBytes, count * lineBytes)
                done += count
            }
        }
    }

    /// Fills a range with zeros.
    public func zero(at offset: UInt64, byteCount: Int) {
        check(offset, byteCount)
        unsafe memset(base + Int(offset), 0, byteCount)
    }

    /// As ``copyOut(at:byteCount:to:bufferOffset:)`` but through the file: a hole reads as zeros and stays one.
    public func read(
        at offset: UInt64, byteCount: Int, to buffer: inout PageBuffer, bufferOffset: Int
    ) throws(SystemError) {
        check(offset, byteCount)
        precondition(bufferOffset >= 0 && byteCount <= buffer.byteCount - bufferOffset)
        var done = 0
        while done < byteCount {
            let count = try retrying("pread") {
                unsafe pread(
                    descriptor.number, buffer.base + bufferOffset + done, byteCount - done,
                    off_t(fileOffset + offset) + off_t(done))
            }
            // Somebody has cut the file.
            guard count > 0 else { throw SystemError("pread", code: EIO) }
            done += count
        }
    }

    /// Gives all pages back: the block reads as zero. Only for a guest that does not run.
    public func punch() throws(SystemError) { try punch(at: 0, byteCount: byteCount) }

    /// Gives the pages of a range back.
    public func punch(at offset: UInt64, byteCount count: UInt64) throws(SystemError) {
        check(offset, Int(count))
        _ = try retrying("fallocate") { Int(capus_punch(descriptor.number, off_t(fileOffset + offset), off_t(count))) }
    }

    /// Copies guest RAM out into `buffer` at `bufferOffset`.
    public func copyOut(at offset: UInt64, byteCount: Int, to buffer: inout PageBuffer, bufferOffset: Int) {
        check(offset, byteCount)
        precondition(bufferOffset >= 0 && byteCount <= buffer.byteCount - bufferOffset)
        unsafe memcpy(buffer.base + bufferOffset, base + Int(offset), byteCount)
    }

    /// Ranges of the block, in bytes from its start, where the file has data; elsewhere it reads as zero.
    public func dataRanges() throws(SystemError) -> [Range<UInt64>] {
        var ranges: [Range<UInt64>] = []
        var at = off_t(fileOffset)
        let end = off_t(fileOffset + byteCount)
        while at < end {
            let data = capus_seek_data(descriptor.number, at)
            // ENXIO: no data behind this point.
            if data < 0 && errno == ENXIO { break }
            guard data >= 0 else { throw SystemError.last("lseek") }
            let hole = capus_seek_hole(descriptor.number, data)
            guard hole >= 0 else { throw SystemError.last("lseek") }
            if data < end { ranges.append(UInt64(data) - fileOffset..<UInt64(min(hole, end)) - fileOffset) }
            at = hole
        }
        return ranges
    }

    private func check(_ offset: UInt64, _ count: Int) {
        precondition(count >= 0 && offset <= byteCount && UInt64(count) <= byteCount - offset)
    }
}

/// Guest RAM that only its QEMU has mapped, written through the kernel.
public struct ProcessWindow: Sendable {
    public let pid: Int32
    public let address: UInt64
    public let byteCount: UInt64

    public init(pid: Int32, address: UInt64, byteCount: UInt64) {
        self.pid = pid
        self.address = address
        self.byteCount = byteCount
    }

    /// Copies `source` into the process at `offset` bytes from the block's start; traps outside the block.
    public func install(_ source: RawSpan, at offset: UInt64) throws(SystemError) {
        check(offset, source.byteCount)
        try unsafe source.withUnsafeBytes { bytes throws(SystemError) in
            try unsafe transfer("process_vm_writev", UnsafeMutableRawBufferPointer(mutating: bytes), offset) {
                unsafe capus_process_vm_writev(pid, $0, $1)
            }
        }
    }

    /// Copies from the process into `buffer` at `bufferOffset`; traps outside the block or the buffer.
    public func copyOut(
        at offset: UInt64, byteCount: Int, to buffer: inout PageBuffer, bufferOffset: Int
    ) throws(SystemError) {
        check(offset, byteCount)
        precondition(bufferOffset >= 0 && byteCount <= buffer.byteCount - bufferOffset)
        let part = unsafe UnsafeMutableRawBufferPointer(start: buffer.base + bufferOffset, count: byteCount)
        try unsafe transfer("process_vm_readv", part, offset) { unsafe capus_process_vm_readv(pid, $0, $1) }
    }

    /// As ``GuestWindow/patch(_:at:_:lineBytes:)``, in one system call.
    public func patch(_ source: RawSpan, at offset: UInt64, _ mask: UInt32, lineBytes: Int) throws(SystemError) {
        check(offset, (UInt32.bitWidth - mask.leadingZeroBitCount) * lineBytes)
        precondition(source.byteCount == mask.nonzeroBitCount * lineBytes)
        // Every second of 32 lines: no mask has more runs.
        var pieces = unsafe InlineArray<16, iovec>(repeating: iovec())
        var count = 0
        mask.eachRun { first, lines in
            unsafe pieces[count] = iovec(
                iov_base: UnsafeMutableRawPointer(bitPattern: UInt(address + offset) + UInt(first * lineBytes)),
                iov_len: lines * lineBytes)
            count += 1
        }
        let written = try retrying("process_vm_writev") {
            unsafe source.withUnsafeBytes { bytes in
                var mine = unsafe iovec(
                    iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress), iov_len: bytes.count)
                return unsafe pieces.span.withUnsafeBufferPointer { theirs in
                    guard let first = theirs.baseAddress else { return 0 }
                    return unsafe capus_process_vm_scatter(pid, &mine, first, count)
                }
            }
        }
        // The kernel stops early only where a page is not mapped.
        guard written == source.byteCount else { throw SystemError("process_vm_writev", code: EFAULT) }
    }

    /// Makes a range read as zero. What is zero already is not written, so memory that was never used stays unused.
    public func zero(at offset: UInt64, byteCount: Int, scratch: inout PageBuffer) throws(SystemError) {
        check(offset, byteCount)
        var done = 0
        while done < byteCount {
            let count = min(byteCount - done, scratch.byteCount)
            let part = unsafe UnsafeMutableRawBufferPointer(start: scratch.base, count: count)
            try unsafe transfer("process_vm_readv", part, offset + UInt64(done)) {
                unsafe capus_process_vm_readv(pid, $0, $1)
            }
            if !scratch.bytes.extracting(0..<count).isAllZero {
                unsafe memset(scratch.base, 0, count)
                try install(scratch.bytes.extracting(0..<count), at: offset + UInt64(done))
            }
            done += count
        }
    }

    private func transfer(
        _ call: StaticString, _ local: UnsafeMutableRawBufferPointer, _ offset: UInt64,
        _ body: (UnsafePointer<iovec>, UnsafePointer<iovec>) -> Int
    ) throws(SystemError) {
        var done = 0
        while done < local.count {
            done += try retrying(call) {
                var mine = unsafe iovec(
                    iov_base: local.baseAddress.map { unsafe $0 + done }, iov_len: local.count - done)
                var theirs = unsafe iovec(
                    iov_base: UnsafeMutableRawPointer(bitPattern: UInt(address + offset) + UInt(done)),
                    iov_len: local.count - done)
                return unsafe body(&mine, &theirs)
            }
        }
    }

    private func check(_ offset: UInt64, _ count: Int) {
        precondition(count >= 0 && offset <= byteCount && UInt64(count) <= byteCount - offset)
    }
}
