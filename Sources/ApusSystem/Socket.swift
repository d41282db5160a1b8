internal import CApus
internal import Glibc

/// A connected stream socket, TCP or UNIX. Reads and writes block the calling thread.
public final class Socket: Sendable {
    let descriptor: Descriptor
    init(_ descriptor: Descriptor) { self.descriptor = descriptor }

    /// Wakes every thread that is blocked on this socket; reads give 0, writes fail. Safe from any thread.
    public func shutDown() { Glibc.shutdown(descriptor.number, Int32(SHUT_RDWR)) }

    /// Blocks until some bytes are there; 0 at the end of the stream.
    public func read(into buffer: inout PageBuffer, _ range: Range<Int>) throws(SystemError) -> Int {
        precondition(range.lowerBound >= 0 && range.upperBound <= buffer.byteCount && !range.isEmpty)
        return try retrying("recv") {
            unsafe recv(descriptor.number, buffer.base + range.lowerBound, range.count, 0)
        }
    }

    /// Nil when no byte is waiting; 0 at the end of the stream.
    public func readIfAny(into buffer: inout PageBuffer, _ range: Range<Int>) throws(SystemError) -> Int? {
        precondition(range.lowerBound >= 0 && range.upperBound <= buffer.byteCount && !range.isEmpty)
        do throws(SystemError) {
            return try retrying("recv") {
                unsafe recv(descriptor.number, buffer.base + range.lowerBound, range.count, Int32(MSG_DONTWAIT))
            }
        } catch {
            if error.isTimeout { return nil }
            throw error
        }
    }

    /// True when ``read(into:_:)`` would not block; waits for that for at most `ms`.
    public func isReadable(withinMs ms: Int32) throws(SystemError) -> Bool {
        // SAFETY: the entry outlives the call.
        var entry = pollfd(fd: descriptor.number, events: Int16(POLLIN), revents: 0)
        return try retrying("poll") { Int(unsafe poll(&entry, 1, ms)) } > 0
    }

    /// Fills the whole range; false when the stream ends before the first byte, an error when it ends later.
    public func readExactly(into buffer: inout PageBuffer, _ range: Range<Int>) throws(SystemError) -> Bool {
        precondition(range.lowerBound >= 0 && range.upperBound <= buffer.byteCount)
        var at = range.lowerBound
        while at < range.upperBound {
            let count = try retrying("recv") {
                unsafe recv(
                    descriptor.number, buffer.base + at, range.upperBound - at, Int32(MSG_WAITALL))
            }
            if count == 0 {
                if at == range.lowerBound { return false }
                throw .connectionReset
            }
            at += count
        }
        return true
    }

    /// Writes all bytes of the spans, in order, with as few calls as possible.
    public func write(
        _ first: RawSpan, _ second: RawSpan = RawSpan(), _ third: RawSpan = RawSpan()
    ) throws(SystemError) {
        let total = first.byteCount + second.byteCount + third.byteCount
        var written = 0
        while written < total {
            let skip = written
            written += try retrying("sendmsg") {
                unsafe first.withUnsafeBytes { a in
                    unsafe second.withUnsafeBytes { b in
                        unsafe third.withUnsafeBytes { c in unsafe send(a, b, c, skipping: skip) }
                    }
                }
            }
        }
    }

    private func send(
        _ a: UnsafeRawBufferPointer, _ b: UnsafeRawBufferPointer, _ c: UnsafeRawBufferPointer, skipping skip: Int
    ) -> Int {
        var skip = skip
        func part(_ bytes: UnsafeRawBufferPointer) -> iovec {
            let skipped = min(skip, bytes.count)
            skip -= skipped
            return unsafe iovec(
                iov_base: UnsafeMutableRawPointer(mutating: bytes.baseAddress.map { unsafe $0 + skipped }),
                iov_len: bytes.count - skipped)
        }
        var parts = unsafe (part(a), part(b), part(c))
        return unsafe withUnsafeMutablePointer(to: &parts) { pointer in
            unsafe pointer.withMemoryRebound(to: iovec.self, capacity: 3) { vector in
                var message = unsafe msghdr()
                unsafe message.msg_iov = vector
                unsafe message.msg_iovlen = 3
                return unsafe sendmsg(descriptor.number, &message, Int32(MSG_NOSIGNAL))
            }
        }
    }

    /// Reads and writes that make no progress for `ms` fail with EAGAIN; 0: no limit.
    public func setTimeout(receiveMs: Double, sendMs: Double) throws(SystemError) {
        try set(SOL_SOCKET, SO_RCVTIMEO, Self.timeval(receiveMs))
        try set(SOL_SOCKET, SO_SNDTIMEO, Self.timeval(sendMs))
    }

    /// Sends small messages at once, and gives up on a peer that acknowledges nothing for `deadAfterMs`.
    public func setTCP(deadAfterMs: Int) throws(SystemError) {
        try set(Int32(IPPROTO_TCP), TCP_NODELAY, Int32(1))
        try set(Int32(IPPROTO_TCP), TCP_USER_TIMEOUT, Int32(deadAfterMs))
    }

    /// The least that a round trip has taken, as TCP knows it; 0: not known.
    public var roundTripNs: UInt64 { UInt64(capus_round_trip_us(descriptor.number)) * 1000 }

    /// Upper bounds of the kernel's buffers, in bytes.
    public func setBuffers(receive: Int?, send: Int?) throws(SystemError) {
        if let receive { try set(SOL_SOCKET, SO_RCVBUF, Int32(receive)) }
        if let send { try set(SOL_SOCKET, SO_SNDBUF, Int32(send)) }
    }

    private static func timeval(_ ms: Double) -> Glibc.timeval {
        Glibc.timeval(tv_sec: Int(ms) / 1000, tv_usec: (Int(ms) % 1000) * 1000)
    }

    private func set<T: BitwiseCopyable>(_ level: Int32, _ option: Int32, _ value: T) throws(SystemError) {
        var value = value
        _ = try retrying("setsockopt") {
            Int(unsafe setsockopt(descriptor.number, level, option, &value, socklen_t(MemoryLayout<T>.size)))
        }
    }
}
