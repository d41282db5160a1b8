internal import CApus
internal import Glibc

/// PAGEMAP_SCAN over the memory of another process: which of its pages are of some kind.
// @unchecked: the regions have exactly one owner, and move with it.
@safe struct PageScan: ~Copyable, @unchecked Sendable {
    private let pagemap: Descriptor
    private let regions: UnsafeMutablePointer<capus_region>
    /// Regions of one call: 256 MiB of every other page written.
    private static let regionsMax = 65_536

    enum Kind {
        /// Written since it was last protected.
        case written
        /// Something else than the page of zeros that stands for memory never used; write markers may be among it.
        case populated
        /// In the process's page tables.
        case present
        /// Something at all, and be it the page of zeros: who touches it goes on.
        case there

        fileprivate var category: capus_scan_kind {
            switch self {
            case .written: CAPUS_SCAN_WRITTEN
            case .populated: CAPUS_SCAN_POPULATED
            case .present: CAPUS_SCAN_PRESENT
            case .there: CAPUS_SCAN_THERE
            }
        }
    }

    static func open(pid: Int32) throws(SystemError) -> PageScan {
        PageScan(try Descriptor.open("/proc/\(pid)/pagemap", .read))
    }

    private init(_ pagemap: Descriptor) {
        self.pagemap = pagemap
        unsafe regions = .allocate(capacity: Self.regionsMax)
    }

    deinit { unsafe regions.deallocate() }

    /// Calls `body` with address and bytes of each run, ascending.
    ///
    /// - Parameter protecting: what is found counts as not written from that very moment on.
    /// - Throws: `SystemError`; `EPERM` when a written page is asked for where nobody tracks, `ESRCH` when the process
    ///   has gone.
    borrowing func each(
        _ kind: Kind, in area: WriteTracker.Area, protecting: Bool = false, _ body: (UInt64, UInt64) -> Void
    ) throws(SystemError) {
        let end = area.address + area.byteCount
        var at = area.address
        while at < end {
            // SAFETY: the kernel fills at most `regionsMax` regions and says how many.
            let found = unsafe capus_pagemap_scan(
                pagemap.number, kind.category, protecting ? 1 : 0, &at, end, regions, Self.regionsMax)
            if found == Int64(-EINTR) { continue }
            guard found >= 0 else { throw SystemError("PAGEMAP_SCAN", code: Int32(-found)) }
            for index in 0..<Int(found) {
                let region = unsafe regions[index]
                body(region.start, region.end - region.start)
            }
        }
    }

    /// Whether any page of the area is of that kind.
    borrowing func finds(_ kind: Kind, in area: WriteTracker.Area) throws(SystemError) -> Bool {
        var isFound = false
        try each(kind, in: area) { _, _ in isFound = true }
        return isFound
    }
}
