internal import ApusCodec
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

// What a lane carries beside pages: QEMU's own stream. A connection that has just carried memory has its window open; on one
// that has been still, every doubling of the window is a round trip in which the guest stands.

/// Messages from the queue to the receiver's word that they are applied; each is a frame of its lane.
///
/// ```
///   add ──▶ due ── takeDue ──▶ on their way ── confirm ──▶
///            ▲                     │
///            `------- lose --------'
/// ```
struct Passage: ~Copyable, Sendable {
    var room = PageBuffer(byteCount: StreamSqueezer.byteCountMax)
    private var due: [ControlLink.Message] = []
    private var onTheirWay: [(frame: UInt64, message: ControlLink.Message)] = []

    var isDue: Bool { !due.isEmpty }

    mutating func add(_ message: ControlLink.Message) { due.append(message) }

    /// The next one, which becomes this frame.
    mutating func takeDue(frame: UInt64) -> ControlLink.Message {
        let message = due.removeFirst()
        onTheirWay.append((frame, message))
        return message
    }

    /// The receiver has applied all frames up to this one.
    mutating func confirm(upTo frame: UInt64) { onTheirWay.removeAll { $0.frame <= frame } }

    /// The connection was lost when the receiver had applied so many frames.
    mutating func lose(applied frame: UInt64) {
        confirm(upTo: frame)
        due = onTheirWay.map(\.message) + due
        onTheirWay = []
    }
}

extension SendLane {
    mutating func passDue() throws(FabricError) {
        while passage.isDue {
            try waitForRoom()
            encoder.beginElsewhere()
            let message = passage.takeDue(frame: encoder.flight.sent)
            if features.contains(.lz4), let byteCount = StreamSqueezer.squeeze(message, into: &passage.room) {
                _ = try waitForLink(byteCount)
                account(bytes: try Self.transmitSqueezed(&sender, index, message.epoch, passage.room, byteCount))
            } else {
                _ = try waitForLink(message.bytes.count)
                account(bytes: try sender.send(message.kind, lane: index, epoch: message.epoch, message.bytes.rawBytes))
            }
        }
    }

    private static func transmitSqueezed(
        _ sender: inout FrameSender, _ lane: UInt16, _ epoch: UInt32, _ room: borrowing PageBuffer, _ byteCount: Int
    ) throws(FabricError) -> Int {
        try sender.send(.squeezedStream, lane: lane, epoch: epoch, room.bytes.extracting(0..<byteCount))
    }
}
