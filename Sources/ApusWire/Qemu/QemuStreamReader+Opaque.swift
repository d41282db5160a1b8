import ApusSystem

// Device state has no length on the wire, so it passes through. What is looked for in it:
//
//   after RAM      7e 00 00 xx xx | 00 | 06 length '{"' ... '}'     the end of the stream
//   before RAM     7e id | START, FULL or a command                 the end of this one section
//
// The guest can write parts of device state (a card's buffers) and so plant a false end. Therefore the end of the
// stream is a guess that later bytes refute, and no byte is ever kept back because of it.

extension QemuStreamReader {
    mutating func deviceBytes(_ bytes: RawSpan) -> Step {
        guard bytes.byteCount > 0 else { return .needMore(1) }
        // Oldest to newest: 7e, a section id below 65536, 00.
        let mask: UInt64 = 0xff_ffff_0000_ff
        let footerAndEnd: UInt64 = 0x7e_0000_0000_00
        var seen = window
        for index in 0..<bytes.byteCount {
            let next = seen << 8 | UInt64(bytes.byte(at: index))
            if next & mask == footerAndEnd {
                if index > 0 {
                    window = seen
                    return .element(.deviceBytes, length: index)
                }
                window = next
                state = .afterEndOfFile
                return .element(.endOfFile, length: 1)
            }
            seen = next
        }
        window = seen
        return .element(.deviceBytes, length: bytes.byteCount)
    }

    /// A description begins with 06, a length and `{"`. Waiting for these seven bytes keeps nothing back that could be
    /// the last of a stream: if they are device state, a footer and another end follow.
    mutating func afterEndOfFile(_ bytes: RawSpan) -> Step {
        guard bytes.byteCount >= 1 else { return .needMore(1) }
        if bytes.byte(at: 0) == WireType.description {
            guard bytes.byteCount >= 7 else { return .needMore(7) }
            let length: UInt32 = bytes.bigEndian(at: 1)
            let opening: UInt16 = bytes.bigEndian(at: 5)
            if length >= 2, length <= limits.vmDescriptionBytes, opening == 0x7b22 {
                remember(bytes, count: 5)
                state = .description(left: Int(length))
                return .element(.vmDescription(length: Int(length)), length: 5)
            }
        }
        state = .device
        return deviceBytes(bytes)
    }

    /// JSON is printable; a byte that is not shows that the guess was wrong.
    mutating func descriptionBytes(_ bytes: RawSpan, left: Int) -> Step {
        guard bytes.byteCount > 0 else { return .needMore(1) }
        let count = min(left, bytes.byteCount)
        var printable = 0
        while printable < count, bytes.byte(at: printable) &- 0x20 < 0x5f { printable += 1 }
        guard printable > 0 else {
            state = .device
            return deviceBytes(bytes)
        }
        remember(bytes, count: printable)
        if printable < left {
            state = printable == count ? .description(left: left - printable) : .device
        } else {
            state = bytes.byte(at: printable - 1) == 0x7d ? .ended : .device
        }
        return .element(.vmDescriptionBytes, length: printable)
    }

    mutating func ended(_ bytes: RawSpan) throws(StreamError) -> Step {
        if !endReported {
            endReported = true
            return .element(.end, length: 0)
        }
        guard bytes.byteCount > 0 else { return .needMore(1) }
        // The end of a post-copy stream is not guessed.
        guard !isPostcopy else { throw .bytesAfterEnd }
        endReported = false
        state = .device
        return deviceBytes(bytes)
    }

    private mutating func remember(_ bytes: RawSpan, count: Int) {
        for index in max(0, count - 8)..<count { window = window << 8 | UInt64(bytes.byte(at: index)) }
    }

    // MARK: Before RAM

    /// QEMU 10 can send device sections before RAM (virtio-mem). The end is the section's own footer with something
    /// plausible behind it; something always follows here, so waiting for it cannot stall.
    mutating func earlyDevice(_ bytes: RawSpan, seen: Int) throws(StreamError) -> Step {
        guard seen <= limits.earlyDeviceBytes else {
            throw .limit("Early device bytes", value: UInt64(seen), limit: UInt64(limits.earlyDeviceBytes))
        }
        var index = 0
        search: while index < bytes.byteCount {
            if bytes.byte(at: index) == WireType.footer {
                let rest = bytes.extracting(droppingFirst: index)
                switch followsFooter(rest) {
                case .yes where index == 0:
                    state = .elements
                    return .element(.footer(id: section), length: 5)
                case .needMore(let want) where index == 0: return .needMore(want)
                case .yes, .needMore: break search
                case .no: break
                }
            }
            index += 1
        }
        guard index > 0 else { return .needMore(1) }
        state = .earlyDevice(bytes: seen + index)
        return .element(.deviceBytes, length: index)
    }

    private enum Verdict { case yes, no, needMore(Int) }

    /// Whether these bytes are this section's footer and the head of another section or a command.
    private func followsFooter(_ bytes: RawSpan) -> Verdict {
        guard bytes.byteCount >= 5 else { return .needMore(5) }
        guard bytes.bigEndian(at: 1, as: UInt32.self) == section else { return .no }
        guard bytes.byteCount >= 6 else { return .needMore(6) }
        switch bytes.byte(at: 5) {
        case WireType.start, WireType.full:
            guard bytes.byteCount >= 11 else { return .needMore(11) }
            let end = 11 + Int(bytes.byte(at: 10))
            guard bytes.bigEndian(at: 6, as: UInt32.self) < 1 << 16, end > 11 else { return .no }
            guard bytes.byteCount >= end else { return .needMore(end) }
            for index in 11..<end where bytes.byte(at: index) &- 0x20 >= 0x5f { return .no }
            return .yes
        case WireType.command:
            guard bytes.byteCount >= 10 else { return .needMore(10) }
            let number: UInt16 = bytes.bigEndian(at: 6)
            return number >= 1 && number <= 16 ? .yes : .no
        default:
            return .no
        }
    }
}
