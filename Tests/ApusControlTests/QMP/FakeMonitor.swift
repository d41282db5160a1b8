import Foundation
import NIOCore
import NIOPosix
import Synchronization

/// Replays scripted bytes on a UNIX socket: what a QEMU monitor sent once, and what a broken one might send.
final class FakeMonitor: Sendable {
    /// In order: what to write, after how many command lines, and how long after them.
    struct Step: Sendable {
        var text: String
        var afterCommands = 0
        var delayMs: Int64 = 0

        init(_ text: String, afterCommands: Int = 0, delayMs: Int64 = 0) {
            self.text = text
            self.afterCommands = afterCommands
            self.delayMs = delayMs
        }
    }

    /// The real greeting of Debian's QEMU 7.2.22, and its reply to our `qmp_capabilities`.
    static let greeting = Step(
        #"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}, "#
            + #""package": "Debian 1:7.2+dfsg-7+deb12u18+b3"}, "capabilities": ["oob"]}}"# + "\r\n")
    static let capable = Step(#"{"return": {}, "id": "1"}"# + "\r\n", afterCommands: 1)

    let path: String
    private let listener: any Channel
    private let counter: Counter

    /// Command lines that came so far.
    var commandCount: Int { counter.lines.withLock { $0 } }

    /// `thenHold`: stay connected after the last step, else close.
    init(_ steps: [Step], thenHold: Bool = false) async throws {
        path = "/tmp/apus-fake-\(UInt32.random(in: 0...UInt32.max)).sock"
        let counter = Counter()
        self.counter = counter
        listener = try await ServerBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .childChannelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Script(steps, hold: thenHold, counter: counter))
                }
            }
            .bind(unixDomainSocketPath: path).get()
    }

    deinit {
        listener.close(promise: nil)
        try? FileManager.default.removeItem(atPath: path)
    }
}

private final class Counter: Sendable {
    let lines = Mutex(0)
}

private final class Script: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private var steps: ArraySlice<FakeMonitor.Step>
    private let hold: Bool
    private let counter: Counter
    private var waiting = false

    init(_ steps: [FakeMonitor.Step], hold: Bool, counter: Counter) {
        self.steps = steps[...]
        self.hold = hold
        self.counter = counter
    }

    func channelActive(context: ChannelHandlerContext) { advance(context) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let ends = unwrapInboundIn(data).readableBytesView.count { $0 == UInt8(ascii: "\n") }
        counter.lines.withLock { $0 += ends }
        if !waiting { advance(context) }
    }

    private func advance(_ context: ChannelHandlerContext) {
        while let step = steps.first {
            guard counter.lines.withLock({ $0 }) >= step.afterCommands else { return }
            guard step.delayMs == 0 else {
                waiting = true
                steps[steps.startIndex].delayMs = 0
                context.eventLoop.assumeIsolated().scheduleTask(in: .milliseconds(step.delayMs)) {
                    self.waiting = false
                    self.advance(context)
                }
                return
            }
            steps.removeFirst()
            context.writeAndFlush(NIOAny(ByteBuffer(string: step.text)), promise: nil)
        }
        if !hold { context.close(promise: nil) }
    }
}
