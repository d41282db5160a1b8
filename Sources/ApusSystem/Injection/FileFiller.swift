internal import CApus
internal import Glibc

/// Puts pages into the file of a guest's RAM, and into nobody's page tables but our own: whoever uses one in its process enters
/// it there, in about a microsecond and without us, and so it can be told afterwards which were used (``Pager/eachUsed(_:)``).
///
///     Pager.fill         page ─▶ file, page tables of the process, who waits is woken
///     FileFiller.fill    page ─▶ file                                                  then ``Pager/wake(_:at:byteCount:)``
///
/// A page that the file has is never overwritten.
// @unchecked: the mapping itself is immutable, and only the kernel writes to it.
@safe public final class FileFiller: @unchecked Sendable {
    private let base: UnsafeMutableRawPointer
    private let byteCount: UInt64
    private let faults: Descriptor

    /// - Throws: `SystemError` when this process may not have a userfaultfd.
    init(_ file: Descriptor, fileOffset: UInt64, byteCount: UInt64) throws(SystemError) {
        let number = capus_fault_open()
        guard number >= 0 else { throw SystemError("userfaultfd", code: -number) }
        faults = Descriptor(owning: number)
        let address = unsafe mmap(
            nil, Int(byteCount), PROT_READ | PROT_WRITE, MAP_SHARED, file.number, off_t(fileOffset))
        guard let address = unsafe address, unsafe address != MAP_FAILED else { throw SystemError.last("mmap") }
        unsafe base = address
        self.byteCount = byteCount
        var error = capus_fault_begin_filling(faults.number)
        if error == 0 {
            error = unsafe capus_fault_register_missing(faults.number, UInt64(UInt(bitPattern: base)), byteCount)
        }
        guard error == 0 else { throw SystemError("UFFDIO_REGISTER", code: error) }
    }

    deinit { unsafe munmap(base, Int(byteCount)) }

    /// Whole pages at `offset` of the block; `bytes` nil: zeros.
    public func fill(at offset: UInt64, _ bytes: RawSpan?, byteCount count: Int) throws(SystemError) {
        precondition(count > 0 && count % 4096 == 0 && offset % 4096 == 0 && bytes?.byteCount ?? count == count)
        precondition(offset <= byteCount && UInt64(count) <= byteCount - offset)
        let address = unsafe UInt64(UInt(bitPattern: base)) + offset
        // SAFETY: the kernel reads `count` bytes of a span that outlives the call.
        let error =
            unsafe bytes?.withUnsafeBytes {
                unsafe capus_fault_fill(faults.number, address, $0.baseAddress, UInt64($0.count))
            } ?? capus_fault_fill(faults.number, address, nil, UInt64(count))
        guard error == 0 else { throw SystemError("UFFDIO_COPY", code: error) }
    }
}

extension GuestWindow {
    public func makeFiller() throws(SystemError) -> FileFiller {
        try FileFiller(descriptor, fileOffset: fileOffset, byteCount: byteCount)
    }
}
