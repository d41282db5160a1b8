internal import ApusSystem

/// Chooses the codec for each body of one kind of frame, and learns from what became of it.
struct SqueezePilot: ~Copyable, Sendable {
    private var chooser = CodecChooser()
    private var scratch = PageBuffer(byteCount: 32 << 10)

    /// Bytes squeezed on trial to see whether the data compress at all.
    private static let probeBytes = 16 << 10

    /// The codec for `body`, given the lane's share of the link.
    mutating func choose(_ body: RawSpan, linkBytesPerNs: Double) -> CodecChoice {
        guard body.byteCount > 0 else { return .raw }
        if chooser.wantsProbe(bytes: body.byteCount) {
            let probe = body.extracting(0..<min(body.byteCount, Self.probeBytes))
            let size = ZstdSqueezer.probe(probe, scratch: &scratch)
            chooser.probed(ratio: Double(size) / Double(probe.byteCount))
        }
        return chooser.decide(linkBytesPerNs: linkBytesPerNs)
    }

    /// The codec has made `left` of `bytes`, in so many nanoseconds of CPU time.
    mutating func learn(_ choice: CodecChoice, ns: UInt64, bytes: Int, left: Int) {
        guard choice != .raw, bytes > 0 else { return }
        chooser.measured(choice, nsPerByte: Double(ns) / Double(bytes), ratio: Double(left) / Double(bytes))
    }
}
