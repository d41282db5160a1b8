internal import ApusFabric
internal import ApusSystem
internal import ApusWire

// How what is no page reaches the destination.
extension StreamSource {
    /// To the destination, behind all that was passed before. Lanes begin with the layout, which is what control is for.
    func pass(_ message: ControlLink.Message) throws(FlowFailure) {
        guard direct != nil || layoutAnnounced else { return try say(message) }
        if lanes[0].queue.send(.message(message)) != nil { throw FlowFailure("link", "Lane 0 has stopped.") }
    }

    func say(_ message: ControlLink.Message) throws(FlowFailure) {
        guard control.send(message) else {
            throw FlowFailure("link", "The control connection to the destination is closed.")
        }
    }
}
