internal import ApusSystem
internal import ApusWire
struct QemuStreamWriter { 
  mutating func beginPart(id: UInt32) {}
  mutating func page(_ n: String, _ at: UInt64, _ b: RawSpan) {}
  mutating func zero(_ n: String, _ at: UInt64) {}
  mutating func endPart(id: UInt32) {}
  mutating func take() -> [UInt8] { [] } }
enum ReturnPath { static func shut(_ s: UInt32) -> [UInt8] { [0,1,0,4,0,0,0,UInt8(s)] } }
enum RPE: Sendable, Equatable { case shut(UInt32), other }
struct ReturnPathReader { typealias Step = StreamStep<RPE>
  mutating func next(_ b: RawSpan) throws(StreamError) -> Step {
    guard b.byteCount >= 4 else { return .needMore(4) }
    let t: UInt16 = b.bigEndian(at: 0), l: UInt16 = b.bigEndian(at: 2)
    guard b.byteCount >= 4 + Int(l) else { return .needMore(4 + Int(l)) }
    return .element(t == 1 ? .shut(b.bigEndian(at: 4)) : .other, length: 4 + Int(l)) } }
