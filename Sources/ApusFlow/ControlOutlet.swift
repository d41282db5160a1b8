internal import ApusFabric
internal import ApusSystem
internal import ApusWire

/// The control connection as a source's threads see it: while it is lost they wait here, until there is another.
final class ControlOutlet: Sendable {
    private struct Content: Sendable {
        var link: ControlLink
        var isHeld = false
        var isOver = false
        /// Bytes of QEMU's stream that were handed to a connection.
        var streamBytes: UInt64 = 0
        var layout: ControlLink.Message?
        /// Bytes on the link of connections that are gone.
        var bytesBefore: UInt64 = 0
    }
    private let content: Monitor<Content>

    init(_ link: ControlLink) { content = Monitor(Content(link: link)) }

    /// Queues a bulk frame; blocks while there is no connection. False: the flow is over.
    func send(_ message: ControlLink.Message) -> Bool {
        while true {
            let taken = content.wait { content -> ControlLink?? in
                if content.isOver { return .some(nil) }
                if content.isHeld { return nil }
                // Counted before it is sent: a byte too many ends the job, one too few would spoil the guest.
                if message.kind == .stream { content.streamBytes += UInt64(message.bytes.count) }
                if message.kind == .layout { content.layout = message }
                return content.link
            }
            guard let link = taken ?? nil else { return false }
            if link.send(message) { return true }
            content.update { content in
                if message.kind == .stream { content.streamBytes -= UInt64(message.bytes.count) }
                if content.link === link { content.isHeld = true }
            }
        }
    }

    /// Cuts the connection.
    func hold() {
        let link = content.update { content in
            content.isHeld = true
            return content.link
        }
        link.cut()
    }

    /// Goes on with another connection, if nothing was lost on the former.
    func resume(_ point: ResumePoint, _ link: ControlLink) throws(FlowFailure) {
        let (sent, layout) = content.read { ($0.streamBytes, $0.layout) }
        guard point.streamBytes <= sent, !point.layoutKnown || layout != nil else {
            throw FlowFailure("peer", "The destination says that it has more than was sent to it.")
        }
        guard point.streamBytes == sent else {
            throw FlowFailure(
                "resume",
                "The connection was lost while \(sent - point.streamBytes) bytes of QEMU's own stream were on it, "
                    + "which cannot be sent again.")
        }
        if let layout, !point.layoutKnown { _ = link.send(layout) }
        content.update { content in
            content.bytesBefore += content.link.bytesSent
            content.link = link
            content.isHeld = false
        }
    }

    func end() { content.update { $0.isOver = true } }

    /// Bytes written to all connections so far, frames included.
    var bytesSent: UInt64 { content.read { $0.bytesBefore + $0.link.bytesSent } }
}
