internal import ApusCodec
internal import ApusContent
internal import ApusFabric
internal import ApusMemory
internal import ApusSystem
internal import ApusWire

// Pages that a receiving lane is referred to.
extension ReceiveLane {
    /// How long what the worker has finished is left alone while nothing comes.
    private static let donePollMs: Int32 = 1

    func makeReferences(
        _ terms: DestinationReferences?, _ layout: Layout
    ) throws(FlowFailure) -> IncomingReferences {
        let share = share
        do throws(SystemError) { return try IncomingReferences(terms, layout, share) } catch {
            throw FlowFailure("install", "There is no thread for references: \(error).")
        }
    }

    mutating func accept(
        _ references: inout IncomingReferences, _ replica: inout ReplicaMap, _ installer: inout RAMInstaller
    ) throws(FlowFailure) {
        let refusal: ReferenceAnswer?
        do throws(FrameError) {
            refusal = try references.accept(receiver.payload, &replica, &installer.awaited)
        } catch { throw FlowFailure("peer", "The references on lane \(share.lane) are not valid: \(error).") }
        if let refusal { try answer(refusal, &references) }
    }

    /// Returns when a frame is there; meanwhile, what is read elsewhere is installed and answered.
    mutating func waitForFrame(
        _ references: inout IncomingReferences, _ installer: inout RAMInstaller
    ) throws(FlowFailure) {
        while installer.awaited.hasFrames {
            try finish(&references, &installer)
            do throws(SystemError) {
                if try receiver.socket.isReadable(withinMs: installer.awaited.hasFrames ? Self.donePollMs : 0) {
                    return
                }
            } catch { throw broken(.system(error)) }
        }
    }

    private mutating func finish(
        _ references: inout IncomingReferences, _ installer: inout RAMInstaller
    ) throws(FlowFailure) {
        while let parcel = references.takeDone() {
            if let frame = installer.awaited.take(parcel.number) {
                let due = parcel.proved & frame.wanted
                do throws(PayloadError) {
                    try references.install(parcel, frame, due, into: &installer)
                } catch { throw failure(error, in: "a reference") }
                counters.diskPages.add(due.nonzeroBitCount)
                try answer(
                    ReferenceAnswer(
                        number: parcel.number, proved: due, refused: frame.wanted & ~parcel.proved,
                        readNs: parcel.readNs), &references)
            }
            references.giveBack(parcel)
        }
    }

    private mutating func answer(
        _ value: ReferenceAnswer, _ references: inout IncomingReferences
    ) throws(FlowFailure) {
        references.store(value)
        do throws(FabricError) { try Self.transmit(&sender, UInt16(share.lane), references) } catch {
            throw broken(error)
        }
    }

    private static func transmit(
        _ sender: inout FrameSender, _ lane: UInt16, _ references: borrowing IncomingReferences
    ) throws(FabricError) {
        try sender.send(.referenceAnswer, lane: lane, references.answer.bytes)
    }
}
