internal import ApusMemory

/// How far a destination got with what was sent before a connection was lost. It is at rest: none of it will change
/// until the source sends again.
public struct ResumePoint: Codable, Sendable, Equatable {
    /// Frames of pages that each lane has applied since its first, in order of lanes.
    public var framesApplied: [UInt64]
    /// Bytes of QEMU's stream written to the destination's QEMU, but for pages.
    public var streamBytes: UInt64
    /// The RAM blocks are known.
    public var layoutKnown: Bool

    public init(framesApplied: [UInt64] = [], streamBytes: UInt64 = 0, layoutKnown: Bool = false) {
        self.framesApplied = framesApplied
        self.streamBytes = streamBytes
        self.layoutKnown = layoutKnown
    }

    /// Why no destination can be at this point, or nil. Whether it fits what was sent is the flow's to judge.
    public func invalid() -> String? {
        if framesApplied.count > Limits.lanes { return "too many lanes" }
        return nil
    }
}
