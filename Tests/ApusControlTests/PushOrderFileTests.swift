import ApusAPI
import ApusMemory
import Foundation
import Testing

@testable import ApusControl

@Suite struct PushOrderFileTests {
    private func layout() throws -> Layout {
        try Layout([("rom", 4 * 4096), ("pc.ram", 1000 * 4096)])
    }

    @Test func runsAreOfTheLargestBlock() throws {
        let record = try PushOrderFile.parse("5 2\n999 1\n", try layout())
        #expect(record.runs.map(\.first) == [9, 1003] && record.runs.map(\.count) == [2, 1])
        #expect(try PushOrderFile.parse("", try layout()).runs.isEmpty)
    }

    @Test(arguments: ["1000 1", "999 2", "5", "5 0", "-1 1", "5 1 1", "a b", "4294967295 4294967295", "\u{0}"])
    func whatIsNoRunIsRefused(_ text: String) throws {
        let layout = try layout()
        #expect(throws: Problem.self) { try PushOrderFile.parse(text, layout) }
    }

    @Test func aFileThatIsTooLongIsRefused() throws {
        let layout = try layout()
        #expect(throws: Problem.self) { try PushOrderFile.read("/dev/zero", layout) }
        #expect(throws: Problem.self) { try PushOrderFile.read("/nowhere/order", layout) }
    }
}
