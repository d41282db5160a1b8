internal import ApusSystem

/// The destination QEMU's incoming socket. Several threads write whole elements; the lock keeps them whole.
final class QemuFeed: Sendable {
    let socket: Socket
    private let writing = Monitor(())

    init(_ socket: Socket) { self.socket = socket }

    func write(_ bytes: RawSpan) throws(SystemError) {
        try writing.update { _ throws(SystemError) in try socket.write(bytes) }
    }
}
