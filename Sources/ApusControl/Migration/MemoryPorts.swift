import ApusFlow
import ApusMemory
import ApusSystem

extension MachineMemory.Locator {
    /// How to reach a block of the destination's QEMU; what cannot be opened goes through the stream.
    func port(of block: RAMBlock) -> BlockPort {
        switch location(of: block.name, bytes: block.byteCount) {
        case .mapped(let path, let offset):
            guard let file = try? Descriptor.open(path, .readWrite),
                let window = try? GuestWindow(file, fileOffset: offset, byteCount: block.byteCount)
            else { return .stream }
            return .mapped(window)
        case .process(let pid, let address):
            return .process(ProcessWindow(pid: pid, address: address, byteCount: block.byteCount))
        case .stream:
            return .stream
        }
    }
}
