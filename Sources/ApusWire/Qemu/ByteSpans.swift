// Spans of UInt8 seen as raw bytes. Belongs beside RawSpan.bigEndian in the fence (ApusSystem/Spans.swift).

extension Span where Element == UInt8 {
    package var rawBytes: RawSpan {
        @_lifetime(copy self)
        get {
            // SAFETY: `bytes` is unsafe for elements with padding; UInt8 has none.
            unsafe bytes
        }
    }
}

extension MutableSpan where Element == UInt8 {
    package var rawBytes: MutableRawSpan {
        @_lifetime(&self)
        mutating get {
            // SAFETY: `mutableBytes` is unsafe for elements with invalid bit patterns; UInt8 has none.
            unsafe mutableBytes
        }
    }
}
