package guest

import (
	"crypto/rand"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Encrypt makes files in an empty directory be encrypted by the file system, with a key
// that it forgets (Documentation/filesystems/fscrypt.rst).
func (g *Guest) Encrypt(dir string) {
	g.Helper()
	d, err := os.Open(dir)
	if err != nil {
		g.Fatal(err)
	}
	defer d.Close()
	ioctl := func(name string, request uint, arg unsafe.Pointer) {
		g.Helper()
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), uintptr(request), uintptr(arg)); errno != 0 {
			g.Fatalf("%s of %s: %v", name, dir, errno)
		}
	}
	const keySize = 64
	key := struct {
		unix.FscryptAddKeyArg
		raw [keySize]byte
	}{FscryptAddKeyArg: unix.FscryptAddKeyArg{
		Key_spec: unix.FscryptKeySpecifier{Type: unix.FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER}, Raw_size: keySize,
	}}
	rand.Read(key.raw[:])
	ioctl("FS_IOC_ADD_ENCRYPTION_KEY", unix.FS_IOC_ADD_ENCRYPTION_KEY, unsafe.Pointer(&key))
	policy := unix.FscryptPolicyV2{
		Version: unix.FSCRYPT_POLICY_V2, Contents_encryption_mode: unix.FSCRYPT_MODE_AES_256_XTS,
		Filenames_encryption_mode: unix.FSCRYPT_MODE_AES_256_CTS, Flags: unix.FSCRYPT_POLICY_FLAGS_PAD_32,
	}
	copy(policy.Master_key_identifier[:], key.Key_spec.U[:])
	ioctl("FS_IOC_SET_ENCRYPTION_POLICY", unix.FS_IOC_SET_ENCRYPTION_POLICY, unsafe.Pointer(&policy))
}
