import Foundation
import NIOCore

/// Cuts the byte stream into lines; a line end is LF, QEMU writes CR LF.
struct LineDecoder: ByteToMessageDecoder {
    typealias InboundOut = ByteBuffer

    /// Bytes already searched, so that a long line in many pieces is looked at once.
    private var searched = 0

    mutating func decode(context: ChannelHandlerContext, buffer: inout ByteBuffer) -> DecodingState {
        let view = buffer.readableBytesView
        guard let end = view.dropFirst(searched).firstIndex(of: UInt8(ascii: "\n")) else {
            searched = view.count
            return .needMoreData
        }
        searched = 0
        let length = view.distance(from: view.startIndex, to: end)
        guard var line = buffer.readSlice(length: length) else { return .needMoreData }
        buffer.moveReaderIndex(forwardBy: 1)
        if line.readableBytesView.last == UInt8(ascii: "\r") { line.moveWriterIndex(to: line.writerIndex - 1) }
        if line.readableBytes > 0 { context.fireChannelRead(wrapInboundOut(line)) }
        return .continue
    }

    mutating func decodeLast(
        context: ChannelHandlerContext, buffer: inout ByteBuffer, seenEOF: Bool
    ) -> DecodingState {
        // A last line without its end was cut by the close: half a message is no message.
        .needMoreData
    }
}

/// Hands lines and the end of the connection to the switchboard, on the event loop, in order.
final class LineHandler: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer

    private let switchboard: Switchboard

    init(_ switchboard: Switchboard) { self.switchboard = switchboard }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let line = Data(unwrapInboundIn(data).readableBytesView)
        do {
            try switchboard.received(line)
        } catch {
            // After one message that is not QMP nothing that follows can be trusted.
            switchboard.end(error)
            context.close(promise: nil)
        }
    }

    func channelInactive(context: ChannelHandlerContext) {
        switchboard.end(.closed)
        context.fireChannelInactive()
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        if error is ByteToMessageDecoderError.PayloadTooLargeError {
            switchboard.end(.malformed(what: "a message exceeds \(QMPLimits.messageBytesMax) bytes"))
        } else {
            switchboard.end(.closed)
        }
        context.close(promise: nil)
    }
}
