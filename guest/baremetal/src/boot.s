# From the loader to Rust. A PVH loader (QEMU's -kernel) starts an ELF file where its note says: 32-bit protected mode without
# paging, interrupts off, the start info's address in ebx. AT&T syntax.

    .section .note.pvh, "a", @note
    .balign 4
    .long 4                         # bytes of the name
    .long 8                         # bytes of the address
    .long 18                        # XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_entry

    .set PAGE_PRESENT_WRITABLE, 0x3
    .set PAGE_2M, 0x80
    .set PAGE_UNCACHED, 0x18        # PCD and PWT
    .set PAGE_2M_LEN, 0x200000
    .set PAGE_DIRECTORY_ENTRIES, 2048
    .set DEVICES_START, 0xb0000000  # QEMU's machines have their devices from here to 4 GiB

    .section .boot, "ax", @progbits
    .code32
    .global pvh_entry
pvh_entry:
    cli
    cld
    movl $__stack_top, %esp

    movl $__bss_start, %edi
    movl $__bss_end, %ecx
    subl %edi, %ecx
    shrl $2, %ecx
    xorl %eax, %eax
    rep stosl

    # The first 4 GiB, each address at its own place.
    movl $boot_page_pointers + PAGE_PRESENT_WRITABLE, boot_page_root
    movl $boot_page_directories + PAGE_PRESENT_WRITABLE, %eax
    movl $boot_page_pointers, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    decl %ecx
    jnz 1b

    movl $PAGE_PRESENT_WRITABLE | PAGE_2M, %eax
    movl $boot_page_directories, %edi
    movl $PAGE_DIRECTORY_ENTRIES, %ecx
2:  movl %eax, (%edi)
    cmpl $DEVICES_START, %eax
    jb 3f
    orl $PAGE_UNCACHED, (%edi)
3:  addl $PAGE_2M_LEN, %eax
    addl $8, %edi
    decl %ecx
    jnz 2b
    movl $0, __guard_entry

    movl %cr4, %eax
    orl $0x620, %eax                # PAE, OSFXSR, OSXMMEXCPT: wide addresses, and the SSE that compiled code is full of
    movl %eax, %cr4
    movl $boot_page_root, %eax
    movl %eax, %cr3
    movl $0xc0000080, %ecx          # EFER
    rdmsr
    orl $0x100, %eax                # LME
    wrmsr
    movl %cr0, %eax
    andl $0xfffffff3, %eax          # not EM, not TS: no trap at SSE
    orl $0x80010022, %eax           # PG, WP, NE, MP
    movl %eax, %cr0
    lgdt boot_gdt_pointer
    ljmp $8, $4f

    .code64
4:  movl $16, %eax
    movl %eax, %ds
    movl %eax, %es
    movl %eax, %ss
    xorl %eax, %eax
    movl %eax, %fs
    movl %eax, %gs
    movq $__stack_top, %rsp
    xorl %ebp, %ebp
    movl %ebx, %edi
    call kernel_start
    ud2

# One place to jump to for each of the processor's exceptions, 16 bytes apart. All leave the same on the stack: vector, error
# code (0 where the processor has none), and what the processor pushes.
    .balign 16
    .global exception_entries
exception_entries:
    .set vector, 0
    .rept 32
    .balign 16
    .if ((0x60227d00 >> vector) & 1) == 0   # bits of 8, 10 to 14, 17, 21, 29, 30
    pushq $0
    .endif
    pushq $vector
    jmp 5f
    .set vector, vector + 1
    .endr
5:  movq %rsp, %rdi
    andq $-16, %rsp
    cld
    call exception
    ud2

    .section .data.boot, "aw", @progbits
    .balign 8
    .global boot_gdt
boot_gdt:
    .quad 0
    .quad 0x00af9a000000ffff        # 8: code, 64 bits
    .quad 0x00cf92000000ffff        # 16: data
    .quad 0, 0                      # 24: the task state, filled in by the exceptions' set-up
boot_gdt_pointer:
    .word . - boot_gdt - 1
    .long boot_gdt
    .long 0

    .section .bss.boot, "aw", @nobits
    .balign 4096
    .global boot_page_directories
boot_page_root:
    .skip 4096
boot_page_pointers:
    .skip 4096
boot_page_directories:
    .skip 4096 * 4
