public import ApusMemory
public import ApusSystem

/// Turns batches into payloads. One per lane: the zstd stream runs through all its batches.
public struct BatchEncoder: ~Copyable, Sendable {
    /// What became of a batch.
    public struct Result: Sendable {
        /// Bytes at the front of ``BatchEncoder/head``.
        public var headBytes = 0
        /// Bytes at the front of the batch's data that travel as they are.
        public var rawBytes = 0
        public var zeroPages = 0
        public var rawPages = 0
        public var squeezedPages = 0
        public var squeezedBytes = 0
        public var codec = Codec.none
    }

    /// Payload up to the raw body.
    public private(set) var head = PageBuffer(byteCount: BatchPayload.headCapacity)
    private var squeezer = BodySqueezer()

    public init() {}

    /// Encodes a batch with the given codec; falls back to raw when the codec does not make it smaller.
    ///
    /// Pages of the batch that turn out to be zero become zero records. Nothing is allocated after the first call for
    /// each codec.
    public mutating func encode(_ batch: inout Batch, _ choice: CodecChoice) -> Result {
        var result = Result()
        var records = batch.recordCount
        if hasZeroPages(batch) {
            records = splitZeroPages(&batch, &result)
        } else {
            for index in 0..<records { store(batch.records[index], at: index) }
            result.rawPages = batch.dataPages
        }
        for index in 0..<batch.recordCount where batch.records[index].form == .zero {
            result.zeroPages += Int(batch.records[index].count)
        }
        let squeezed = squeezer.squeeze(
            batch.data.bytes.extracting(0..<result.rawPages * Limits.pageBytes), choice, into: &head,
            at: BatchPayload.headBytes + records * BatchPayload.recordBytes)
        var flags: UInt8 = 0
        if let squeezed {
            flags = squeezed.restarted ? BatchPayload.restartFlag : 0
            result.codec = squeezed.codec
            result.squeezedBytes = squeezed.byteCount
            result.squeezedPages = result.rawPages
            result.rawPages = 0
            for index in 0..<records { markSqueezed(index) }
        }
        result.rawBytes = result.rawPages * Limits.pageBytes
        result.headBytes = BatchPayload.headBytes + records * BatchPayload.recordBytes + result.squeezedBytes
        storeHead(records: records, result: result, flags: flags)
        return result
    }

    /// The receiver may have missed a part of what was sent.
    public mutating func restart() { squeezer.restart() }

    private func hasZeroPages(_ batch: borrowing Batch) -> Bool {
        let data = batch.data.bytes
        for slot in 0..<batch.dataPages {
            let at = slot * Limits.pageBytes
            // The first words of nearly every page decide.
            if data.extracting(at..<at + 64).isAllZero && data.extracting(at..<at + Limits.pageBytes).isAllZero {
                return true
            }
        }
        return false
    }

    /// The rare case: takes zero pages out of the data runs, closing the gaps in the data. Runs may multiply, so zero
    /// pages are left as data when there is no room for another record.
    private mutating func splitZeroPages(_ batch: inout Batch, _ result: inout Result) -> Int {
        var records = 0
        var slot = 0
        var kept = 0
        var room = Limits.batchRecords - batch.recordCount
        for index in 0..<batch.recordCount {
            let record = batch.records[index]
            if record.form == .zero {
                store(record, at: records)
                records += 1
                continue
            }
            var run = PageRecord(first: record.first, count: 0, form: .raw)
            for offset in 0..<UInt32(record.count) {
                let at = slot * Limits.pageBytes
                let isZero = batch.data.bytes.extracting(at..<at + Limits.pageBytes).isAllZero
                let form: Form = isZero && (room > 0 || run.form == .zero) ? .zero : .raw
                if form == .zero {
                    result.zeroPages += 1
                } else {
                    if kept != slot { batch.data.copyWithin(from: at, to: kept * Limits.pageBytes, Limits.pageBytes) }
                    kept += 1
                }
                if run.count > 0 && run.form != form {
                    if room > 0 {
                        store(run, at: records)
                        records += 1
                        room -= 1
                        run = PageRecord(first: record.first + offset, count: 0, form: form)
                    }
                } else {
                    run.form = form
                }
                run.count += 1
                slot += 1
            }
            store(run, at: records)
            records += 1
        }
        result.rawPages = kept
        return records
    }

    private mutating func store(_ record: PageRecord, at index: Int) {
        let at = BatchPayload.headBytes + index * BatchPayload.recordBytes
        var bytes = head.mutableBytes
        bytes.store(littleEndian: record.first, at: at)
        bytes.store(littleEndian: record.count, at: at + 4)
        bytes.store(littleEndian: record.form.rawValue, at: at + 6)
        bytes.store(littleEndian: UInt8(0), at: at + 7)
    }

    private mutating func markSqueezed(_ index: Int) {
        let at = BatchPayload.headBytes + index * BatchPayload.recordBytes + 6
        guard head.bytes.byte(at: at) == Form.raw.rawValue else { return }
        var bytes = head.mutableBytes
        bytes.store(littleEndian: Form.squeezed.rawValue, at: at)
    }

    private mutating func storeHead(records: Int, result: Result, flags: UInt8) {
        var bytes = head.mutableBytes
        bytes.store(littleEndian: UInt16(records), at: 0)
        bytes.store(littleEndian: result.codec.rawValue, at: 2)
        bytes.store(littleEndian: flags, at: 3)
        bytes.store(littleEndian: UInt32(result.squeezedBytes), at: 4)
    }
}
