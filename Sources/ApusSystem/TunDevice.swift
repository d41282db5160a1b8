internal import CApus
internal import Glibc

/// A network interface of which this process is the wire: what its host sends is read here, what is written here arrives
/// there. It goes when the last reference does, or with its namespace.
///
/// Packets are IP, as large as the host hands them over (64 KiB segments), and carry the kernel's own header of offloads,
/// which another such interface understands.
public final class TunDevice: Sendable {
    private let descriptor: Descriptor

    /// The largest packet with its header.
    public static let packetBytesMax = 65_535 + 10

    /// - Parameter space: path of the network namespace that gets the interface, `/run/netns/NAME`.
    /// - Throws: `SystemError`; `EPERM` without the rights for it.
    public static func make(_ name: String, space: String) throws(SystemError) -> TunDevice {
        let answer = Monitor<Int32?>(nil)
        // A thread of its own: it ends in that namespace.
        _ = try WorkerThread("apus-tun") {
            let made = unsafe space.withCString { space in unsafe name.withCString { unsafe capus_tun_open(space, $0) }
            }
            answer.update { $0 = made }
        }
        let number = answer.wait { $0 } ?? -EINTR
        guard number >= 0 else { throw SystemError("tun \(name) in \(space)", code: -number) }
        return TunDevice(Descriptor(owning: number))
    }

    private init(_ descriptor: Descriptor) { self.descriptor = descriptor }

    /// The next packet that the host has sent, put at `offset`: its length; nil: there is none. Does not block.
    public func read(into buffer: inout PageBuffer, at offset: Int) throws(SystemError) -> Int? {
        precondition(offset >= 0 && offset + Self.packetBytesMax <= buffer.byteCount)
        do throws(SystemError) {
            return try retrying("read") {
                unsafe Glibc.read(descriptor.number, buffer.base + offset, Self.packetBytesMax)
            }
        } catch {
            if error.isTimeout { return nil }
            throw error
        }
    }

    /// Lets a packet arrive at the host; one that it does not take, since the interface is down, is lost as on a wire.
    public func deliver(_ packet: RawSpan) {
        _ = unsafe packet.withUnsafeBytes { unsafe Glibc.write(descriptor.number, $0.baseAddress, $0.count) }
    }

    /// True when ``read(into:at:)`` has something to say; waits for that at most so long.
    public func isReadable(withinNs ns: UInt64) throws(SystemError) -> Bool {
        let ready = capus_wait_readable(descriptor.number, Int64(ns))
        guard ready >= 0 else { throw SystemError("ppoll", code: -ready) }
        return ready > 0
    }
}
