//  The data plane of a session world, as far as a lost connection shows it: numbered frames of pages, then one piece of
//  stream (device state) that QEMU loads from. What is on the link when it breaks is gone.
//
//     A: sent 1 2 3 4   ==== 3 4 ===x   B: applied 1 2          held; B says 2; 3 and 4 are sent again

import ApusControl
import ApusFlow

struct FlowModel {
    /// Frames that A has sent, each for the first time.
    var sent: UInt64 = 0
    /// Frames that B has applied.
    var applied: UInt64 = 0
    var isHeld = false
    /// The connection that A's flow uses.
    var connection = 0
    /// Device state that waits while the flow is held.
    var waitingEnd: Int?
    var isEndSent = false
    var isStreamWritten = false

    static let framesMax: UInt64 = 4

    mutating func apply(_ number: UInt64) throws {
        guard number == applied + 1 else { throw Violation(text: "frame \(number) after \(applied)") }
        applied = number
    }
}

extension World {
    mutating func sendFrame() {
        guard !flow.isHeld, flow.sent < FlowModel.framesMax else { return }
        flow.sent += 1
        if linkUp, sabotage == .flowGoesOnUnheld || flow.connection == connection { toB.append(.frame(flow.sent)) }
    }

    mutating func sendStreamEnd() {
        guard !flow.isHeld else { return flow.waitingEnd = version }
        flow.isEndSent = true
        if linkUp, flow.connection == connection { toB.append(.streamEnd(version: version, frames: flow.sent)) }
    }

    mutating func holdTransfer() {
        flow.isHeld = sabotage != .flowGoesOnUnheld
        if linkUp, flow.connection == connection { dropLink() }
    }

    mutating func resumeTransfer(_ point: ResumePoint) {
        // The loss is in the inbox already.
        guard linkUp else { return }
        let applied = point.framesApplied.first ?? 0
        if applied > flow.sent { return tellA(.localFailed(.init("peer", "It has more than was sent."))) }
        if point.streamBytes != (flow.isEndSent ? 1 : 0) {
            return tellA(.localFailed(.init("resume-impossible", "A part of the stream is lost.")))
        }
        flow.isHeld = false
        flow.connection = connection
        if sabotage != .lostFramesStayLost, applied < flow.sent {
            for number in applied + 1...flow.sent { toB.append(.frame(number)) }
        }
        if let version = flow.waitingEnd {
            flow.waitingEnd = nil
            flow.isEndSent = true
            toB.append(.streamEnd(version: version, frames: flow.sent))
        }
        if collectsMarks { marks.insert("resumed") }
        tellA(.transferResumed)
    }

    var resumePoint: ResumePoint {
        ResumePoint(
            framesApplied: [flow.applied + (sabotage == .destinationOverstates ? 1 : 0)],
            streamBytes: flow.isStreamWritten ? 1 : 0, layoutKnown: true)
    }
}
