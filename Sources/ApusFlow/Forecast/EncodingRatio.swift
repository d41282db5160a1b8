internal import ApusMemory

/// Wire bytes per byte of guest memory, of late: what is sent again is encoded in another way than the first pass.
struct EncodingRatio: Sendable {
    private var wireBytes: UInt64 = 0
    private var pages: UInt64 = 0
    private var latest = 1.0
    /// Fewer pages say too little.
    private static let pagesMin: UInt64 = 256

    mutating func take(wireBytes: UInt64, pages: UInt64) -> Double {
        guard pages >= self.pages + Self.pagesMin else { return latest }
        let bytes = Double(pages - self.pages) * Double(Limits.pageBytes)
        latest = min(1.1, Double(wireBytes - min(self.wireBytes, wireBytes)) / bytes)
        (self.wireBytes, self.pages) = (wireBytes, pages)
        return latest
    }
}
