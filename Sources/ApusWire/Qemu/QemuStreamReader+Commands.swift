import ApusSystem

/// Numbers of the commands; zero is invalid.
enum CommandNumber {
    static let openReturnPath: UInt16 = 1
    static let ping: UInt16 = 2
    static let postcopyAdvise: UInt16 = 3
    static let postcopyListen: UInt16 = 4
    static let postcopyRun: UInt16 = 5
    static let postcopyDiscard: UInt16 = 6
    static let packaged: UInt16 = 7
    static let enableColo: UInt16 = 8
    static let postcopyResume: UInt16 = 9
    static let receiveBitmap: UInt16 = 10
    static let switchoverStart: UInt16 = 11
}

extension QemuStreamReader {
    /// u8 8, u16 number, u16 payload length, payload.
    mutating func command(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard bytes.byteCount >= 5 else { return .needMore(5) }
        let number: UInt16 = bytes.bigEndian(at: 1)
        let length = Int(bytes.bigEndian(at: 3, as: UInt16.self))
        if let fixed = Self.fixedLength(of: number), fixed != length,
            number != CommandNumber.postcopyAdvise || length != 0
        {
            throw .wrongCommandLength(command: number, length: length)
        }
        guard bytes.byteCount >= 5 + length else { return .needMore(5 + length) }
        let command = try parse(number, payload: bytes.extracting(5..<5 + length))
        return .element(.command(command), length: 5 + length)
    }

    private static func fixedLength(of number: UInt16) -> Int? {
        switch number {
        case CommandNumber.ping, CommandNumber.packaged: 4
        case CommandNumber.postcopyAdvise: 16
        case CommandNumber.openReturnPath, CommandNumber.postcopyListen, CommandNumber.postcopyRun,
            CommandNumber.enableColo, CommandNumber.postcopyResume, CommandNumber.switchoverStart:
            0
        default: nil
        }
    }

    /// Fixed lengths are checked already.
    private mutating func parse(_ number: UInt16, payload: RawSpan) throws(StreamError) -> StreamCommand {
        switch number {
        case CommandNumber.openReturnPath: return .openReturnPath
        case CommandNumber.ping: return .ping(payload.bigEndian(at: 0))
        case CommandNumber.postcopyAdvise:
            if payload.byteCount == 0 { return .postcopyAdviseBitmaps }
            return .postcopyAdvise(pageSizes: payload.bigEndian(at: 0), targetPageSize: payload.bigEndian(at: 8))
        case CommandNumber.postcopyListen:
            isPostcopy = true
            return .postcopyListen
        case CommandNumber.postcopyRun:
            isPostcopy = true
            return .postcopyRun
        case CommandNumber.postcopyDiscard: return try discard(payload)
        case CommandNumber.packaged:
            guard packageLeft < 0 else { throw .nestedPackage }
            packageLeft = Int(payload.bigEndian(at: 0, as: UInt32.self))
            return .packaged(length: packageLeft)
        case CommandNumber.enableColo: throw .coloRequested
        case CommandNumber.postcopyResume: return .postcopyResume
        case CommandNumber.receiveBitmap:
            guard payload.byteCount >= 1, payload.byteCount == 1 + Int(payload.byte(at: 0)) else {
                throw .wrongCommandLength(command: number, length: payload.byteCount)
            }
            return .receiveBitmap(block: try blockIndex(payload.extracting(1..<payload.byteCount)))
        case CommandNumber.switchoverStart: return .switchoverStart
        default: return .unknown(number: number, length: payload.byteCount)
        }
    }

    /// u8 version 0, str8 block, u8 0, then per range u64 start, u64 byte count.
    private func discard(_ payload: RawSpan) throws(StreamError) -> StreamCommand {
        let wrong = StreamError.wrongCommandLength(command: CommandNumber.postcopyDiscard, length: payload.byteCount)
        guard payload.byteCount >= 2 else { throw wrong }
        let nameEnd = 2 + Int(payload.byte(at: 1))
        guard payload.byteCount > nameEnd, (payload.byteCount - nameEnd - 1) % 16 == 0 else { throw wrong }
        guard payload.byte(at: 0) == 0, payload.byte(at: nameEnd) == 0 else {
            throw .badDiscard(version: payload.byte(at: 0), terminator: payload.byte(at: nameEnd))
        }
        let block = try blockIndex(payload.extracting(2..<nameEnd))
        let ranges = (payload.byteCount - nameEnd - 1) / 16
        for index in 0..<ranges {
            let start: UInt64 = payload.bigEndian(at: nameEnd + 1 + 16 * index)
            let length: UInt64 = payload.bigEndian(at: nameEnd + 9 + 16 * index)
            guard table.contains(block, offset: start, length: length), (start | length) & RecordFlags.mask == 0 else {
                throw .outsideBlock(block: block, offset: start, length: length)
            }
        }
        return .postcopyDiscard(block: block, ranges: ranges)
    }
}

// MARK: - Package

extension QemuStreamReader {
    /// As `element`, but nothing may reach beyond the package.
    mutating func packagedElement(_ bytes: RawSpan) throws(StreamError) -> Step {
        guard packageLeft > 0 else {
            guard state == .elements || state == .device else { throw .crossesPackage(left: 0) }
            state = .elements
            packageLeft = -1
            return .element(.packageEnd, length: 0)
        }
        let left = packageLeft
        let visible = bytes.extracting(first: min(left, bytes.byteCount))
        let step = state == .device ? packagedDevice(visible) : try element(visible)
        switch step {
        case .needMore(let want):
            guard want <= left else { throw .crossesPackage(left: left) }
        case .element(_, let length):
            packageLeft -= length
        }
        return step
    }

    /// Device state in a package ends with the commands that QEMU puts behind it: PINGs and RUN. They are recognised
    /// from the end of the package, which is known. If there is no RUN, all of it passes as device state.
    private mutating func packagedDevice(_ bytes: RawSpan) -> Step {
        let tailMax = 5 + 4 * 9
        if packageLeft > tailMax {
            let length = min(bytes.byteCount, packageLeft - tailMax)
            return length > 0 ? .element(.deviceBytes, length: length) : .needMore(1)
        }
        guard bytes.byteCount == packageLeft else { return .needMore(packageLeft) }
        var end = packageLeft
        if end >= 5, isCommand(CommandNumber.postcopyRun, length: 0, bytes, at: end - 5) {
            end -= 5
            while end >= 9, isCommand(CommandNumber.ping, length: 4, bytes, at: end - 9) { end -= 9 }
            state = .elements
        }
        return .element(.deviceBytes, length: end)
    }

    private func isCommand(_ number: UInt16, length: UInt16, _ bytes: RawSpan, at offset: Int) -> Bool {
        bytes.byte(at: offset) == WireType.command && bytes.bigEndian(at: offset + 1, as: UInt16.self) == number
            && bytes.bigEndian(at: offset + 3, as: UInt16.self) == length
    }
}
