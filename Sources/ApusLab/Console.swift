internal import ApusSystem
internal import NIOCore
internal import NIOPosix
internal import Synchronization

/// Reads one host's serial console and stamps each line with the moment of its arrival.
///
/// QEMU listens (`server=on,wait=off`) and drops what the guest prints while nobody is connected, so the destination's
/// console is connected before the guest is switched there.
public final class Console: Sendable {
    public let path: String
    /// When somebody listened at the path.
    public let connected: Moment
    private let state = Mutex(ConsoleTrace())
    private let channel = Mutex<(any Channel)?>(nil)

    private init(path: String, connected: Moment) {
        self.path = path
        self.connected = connected
    }

    /// Connects as soon as somebody listens at `path`.
    public static func connect(path: String, seconds: Double = 15) async throws -> Console {
        let peer = try await wait(for: "a console at \(path)", seconds: seconds, every: .milliseconds(2)) {
            try? LocalPeer.connect(path: path)
        }
        let console = Console(path: path, connected: ContinuousClock.now)
        let channel = try await ClientBootstrap(group: MultiThreadedEventLoopGroup.singleton)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(Stamper(console))
                }
            }
            .withConnectedSocket(peer.descriptor)
            .get()
        console.channel.withLock { $0 = channel }
        return console
    }

    public var trace: ConsoleTrace { state.withLock { $0 } }

    fileprivate func feed(_ bytes: ByteBufferView, arrived: Moment) {
        state.withLock { $0.feed(bytes, arrived: arrived) }
    }

    public func close() async {
        let open = channel.withLock { channel in
            defer { channel = nil }
            return channel
        }
        try? await open?.close()
    }

    /// Waits until `count` verdicts have arrived here; the second one's pass has begun here.
    ///
    /// - Throws: `LabError.guestWrong` as soon as the guest finds a wrong page; `LabError.timedOut`.
    @discardableResult
    public func verdicts(_ count: Int, seconds: Double) async throws -> [ConsoleTrace.Verdict] {
        try await wait(for: "\(count) verdicts of the guest", seconds: seconds, every: .milliseconds(20)) {
            let trace = self.trace
            if !trace.wrong.isEmpty || trace.verdicts.contains(where: { !$0.isGood }) {
                throw LabError.guestWrong(lines: trace.wrong)
            }
            return trace.verdicts.count >= count ? trace.verdicts : nil
        }
    }

    /// Waits for a full check that began here. A wrong page, or a guest that says nothing, is a result to be read from
    /// the trace, not a fault of the experiment.
    func check(seconds: Double) async { _ = try? await verdicts(2, seconds: seconds) }

    private final class Stamper: ChannelInboundHandler {
        typealias InboundIn = ByteBuffer
        private let console: Console
        init(_ console: Console) { self.console = console }

        func channelRead(context: ChannelHandlerContext, data: NIOAny) {
            console.feed(unwrapInboundIn(data).readableBytesView, arrived: ContinuousClock.now)
        }
        func errorCaught(context: ChannelHandlerContext, error: any Error) { context.close(promise: nil) }
    }
}
