internal import ApusFabric
public import ApusFlow
public import ApusMemory
public import ApusSystem
public import ApusWire

/// Both halves of a flow over real TCP on loopback, between two fakes of QEMU: one writes a stream that our writer made,
/// the other reads what reaches it and says SHUT at the end. Memory is a real mapped file.
public final class Loopback: Sendable {
    public static let sectionID: UInt32 = 2
    public let layout: Layout
    public let ram: Descriptor
    public let window: GuestWindow
    public let source: SourceFlow
    public let destination: DestinationFlow
    /// The side of the fake source QEMU.
    public let sourceQemu: Socket
    /// The side of the fake destination QEMU.
    public let destinationQemu: Socket
    public let sourceEvents = Monitor<[SourceFlowEvent]>([])
    public let destinationEvents = Monitor<[DestinationFlowEvent]>([])
    private let reception: Reception
    private let control: Monitor<ControlLink>
    private let lanes: Int
    /// What the destination calls its next control connection.
    private let connection: Monitor<Int>

    /// - Parameters:
    ///   - guest: what the first block really holds at the source.
    ///   - references: where the destination finds pages that do not travel.
    public init(
        lanes: Int, blocks: [(name: String, byteCount: UInt64)], mapped: Bool = true,
        options: FlowOptions = FlowOptions(), guest: GuestWindow? = nil, references: DestinationReferences? = nil
    ) throws {
        layout = try Layout(blocks)
        self.lanes = lanes
        let numbers = Monitor(0)
        connection = numbers
        ram = try Descriptor.memoryFile(byteCount: blocks[0].byteCount)
        window = try GuestWindow(ram, fileOffset: 0, byteCount: blocks[0].byteCount)
        let (farSource, nearSource) = try Socket.pair()
        let (farDestination, nearDestination) = try Socket.pair()
        sourceQemu = farSource
        destinationQemu = farDestination

        let (window, firstName) = (self.window, blocks[0].name)
        let controlBack = Monitor<ControlLink?>(nil)
        let destination = try DestinationFlow(
            qemu: nearDestination, lanes: lanes, references: references,
            ports: { $0.name == firstName && mapped ? .mapped(window) : .stream },
            send: { message in _ = controlBack.wait { $0 }?.send(message) },
            report: { [destinationEvents] event in destinationEvents.update { $0.append(event) } })
        self.destination = destination
        reception = try Reception(
            .tcp(host: "127.0.0.1", port: 0), decide: { _ in nil },
            accepted: { connection in
                if connection.hello.role == .lane {
                    destination.attach(connection)
                } else {
                    let number = numbers.read { $0 }
                    let link = try? ControlLink(
                        connection, received: { destination.receive($1, on: number) }, closed: { _, _ in })
                    controlBack.update { $0 = link }
                }
            })
        let link = try Self.dialControl(reception)
        control = Monitor(link)
        source = try SourceFlow(
            .stream(nearSource), control: link, lanes: try Self.dialLanes(reception, lanes), options: options,
            memory: { block in
                if let guest, block.name == firstName { .mapped(guest) } else { .stream }
            },
            report: { [sourceEvents] event in sourceEvents.update { $0.append(event) } })
    }

    public func stop() {
        source.stop()
        destination.stop()
        control.read { $0 }.cut()
        reception.shutDown()
        sourceQemu.shutDown()
        destinationQemu.shutDown()
    }

    private static func dialControl(_ reception: Reception) throws -> ControlLink {
        try ControlLink(
            try Connection.dial(reception.endpoint, Hello(role: .control)), received: { _, _ in }, closed: { _, _ in })
    }

    private static func dialLanes(_ reception: Reception, _ count: Int) throws -> LaneConnections {
        var connections = LaneConnections()
        for lane in 0..<count {
            connections = connections.adding(
                try Connection.dial(
                    reception.endpoint, Hello(role: .lane, lane: UInt16(lane), lanes: UInt32(count))))
        }
        return connections
    }

    /// Breaks all connections and restores them, as the two sessions would.
    ///
    /// - Parameter lie: what the destination says instead of the truth.
    public func reconnect(lie: (ResumePoint) -> ResumePoint = { $0 }) throws {
        source.hold()
        let rest = try destination.rest()
        connection.update { $0 = rest.connection }
        let link = try Self.dialControl(reception)
        control.update { $0 = link }
        try source.resume(at: lie(rest.point), control: link, lanes: try Self.dialLanes(reception, lanes))
    }

    /// Reads what reaches the destination's QEMU until `marker` was seen at the end, or 20 s have passed.
    public func receive(until marker: [UInt8]) throws -> [UInt8] {
        try destinationQemu.setTimeout(receiveMs: 20_000, sendMs: 0)
        var buffer = PageBuffer(byteCount: 1 << 16)
        var bytes: [UInt8] = []
        while !(bytes.count >= marker.count && Array(bytes.suffix(marker.count)) == marker) {
            let count = try destinationQemu.read(into: &buffer, 0..<buffer.byteCount)
            guard count > 0 else { break }
            bytes += buffer.bytes.extracting(0..<count).bytesCopied
        }
        return bytes
    }
}

/// Writes a stream as QEMU does: header, START, PARTs, END, one device section, end of file.
public struct StreamScript {
    public var buffer = StreamBuffer()
    private var writer: QemuStreamWriter
    static let device: [UInt8] = Array("device state of some length, opaque to everyone".utf8)
    /// The bytes behind the device section's head.
    public static var tail: [UInt8] { device + [0x7e, 0, 0, 0, 9, 0x00] }

    public init(_ layout: Layout) throws {
        let table = try RamBlockTable(layout.blocks.map { RamBlock(name: $0.name, usedLength: $0.byteCount) })
        writer = QemuStreamWriter(table: table)
        writer.header(machine: "pc-q35-7.2", to: &buffer)
        writer.sectionStart(
            id: Loopback.sectionID, name: "ram", version: 4, to: &buffer)
        writer.blockList(table, withAddresses: false, to: &buffer)
        endSection()
    }

    /// More of a stream that has begun.
    public init(continuing layout: Layout) throws {
        let table = try RamBlockTable(layout.blocks.map { RamBlock(name: $0.name, usedLength: $0.byteCount) })
        writer = QemuStreamWriter(table: table)
    }

    public mutating func beginPart() { writer.sectionPart(id: Loopback.sectionID, to: &buffer) }
    public mutating func beginEnd() { writer.sectionEnd(id: Loopback.sectionID, to: &buffer) }
    public mutating func endSection() {
        writer.endOfRecords(to: &buffer)
        writer.footer(id: Loopback.sectionID, to: &buffer)
    }
    public mutating func page(_ block: Int, _ page: Int, _ bytes: [UInt8]?) {
        if let bytes {
            writer.page(block: block, offset: UInt64(page * 4096), to: &buffer)
            buffer.append(bytes.rawBytes)
        } else {
            writer.zero(block: block, offset: UInt64(page * 4096), to: &buffer)
        }
    }
    /// - Parameter state: more device state, without zeros.
    public mutating func finish(_ state: [UInt8] = []) {
        writer.sectionFull(
            id: 9, name: "timer", instance: 0, version: 1, to: &buffer)
        buffer.append(state.rawBytes)
        buffer.append(Self.tail.rawBytes)
    }
}
